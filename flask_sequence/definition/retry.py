"""How long until the next attempt at a step, or that there is none."""

from __future__ import annotations

import random
import typing as t
from dataclasses import dataclass

from celery.utils.time import get_exponential_backoff_interval

FROM_CONFIG: t.Final = -1
"""As ``max_retries``: the number of retries is that of ``SEQUENCE_MAX_RETRIES``."""

_MAX_DOUBLINGS = 64  # Beyond 2**1023 a float overflows; every cap is reached long before.
_MAX_CRASH_DELAY = 30.0


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Which exceptions of a step are retried, how often, and after how long.

    :param max_retries: Retries after the first attempt; ``None`` is forever, :data:`FROM_CONFIG`
        the application's number.
    :param autoretry_for: The exceptions that are retried; any other fails the run at once.
    :param dont_autoretry_for: Exceptions among those that are not retried all the same.
    :param backoff: The first delay in seconds, which doubles from retry to retry; ``None`` retries
        without a delay.
    :param backoff_max: The longest delay that doubling leads to, in seconds.
    :param jitter: Whether a delay is cut at random to between 50 and 100 %, so that steps that
        failed together are not retried together.
    :param default_delay: This fixed delay in seconds, without backoff and jitter, if it is set.

    .. versionadded:: 0.1
    """

    max_retries: int | None = FROM_CONFIG
    autoretry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    backoff: float | None = 1.0
    backoff_max: float = 600.0
    jitter: bool = True
    default_delay: float | None = None

    def covers(self, error: BaseException) -> bool:
        """Tell whether an exception is one that is retried.

        :param error: What the step raised.
        :return: Whether ``autoretry_for`` names it and ``dont_autoretry_for`` does not.

        .. versionadded:: 0.1
        """
        return isinstance(error, self.autoretry_for) and not isinstance(
            error, self.dont_autoretry_for
        )

    def limit(self, default: int | None) -> int | None:
        """Tell how many retries there are; ``None``: there is no limit.

        :param default: ``SEQUENCE_MAX_RETRIES``, for a policy without a number of its own.

        .. versionadded:: 0.1
        """
        return default if self.max_retries == FROM_CONFIG else self.max_retries

    @property
    def setting(self) -> str:
        """The name of what sets how many retries there are.

        .. versionadded:: 0.1
        """
        return "SEQUENCE_MAX_RETRIES" if self.max_retries == FROM_CONFIG else "max_retries"

    def delay(
        self, retries: int, *, default_limit: int | None, countdown: float | None = None
    ) -> float | None:
        """Tell how long to wait until the next retry.

        :param retries: How many retries the step has used so far.
        :param default_limit: ``SEQUENCE_MAX_RETRIES``, for a policy without a number of its own.
        :param countdown: Seconds to wait instead of the policy's delay; it uses up a retry as well.
        :return: The delay in seconds, or ``None`` if the retries are used up.

        .. versionadded:: 0.1
        """
        limit = self.limit(default_limit)
        if limit is not None and retries >= limit:
            return None
        if countdown is not None:
            return max(0.0, countdown)
        return self._own_delay(retries)

    def _own_delay(self, retries: int) -> float:
        if self.default_delay is not None:
            return self.default_delay
        if self.backoff is None:
            return 0.0
        delay = _doubled(self.backoff, retries, self.backoff_max)
        return delay * random.uniform(0.5, 1.0) if self.jitter else delay


def crash_delay(crashes: int, *, most: int) -> float | None:
    """Tell how long a run waits after a process died in its step.

    :param crashes: Crashes of the run without progress, with this one: 1, 2, ...
    :param most: ``SEQUENCE_MAX_CRASHES``.
    :return: 0 seconds after the first, then 1, 2, 4, ... up to 30, cut at random by up to 20 %;
        ``None`` if it has crashed too often.

    .. versionadded:: 0.1
    """
    if crashes >= most:
        return None
    if crashes <= 1:
        return 0.0
    return _doubled(1.0, crashes - 2, _MAX_CRASH_DELAY) * random.uniform(0.8, 1.0)


def _doubled(first: float, times: int, longest: float) -> float:
    # Celery's annotations know whole seconds only; the function itself takes any number.
    return get_exponential_backoff_interval(first, min(times, _MAX_DOUBLINGS), longest)  # type: ignore[arg-type]
