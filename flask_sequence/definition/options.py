"""What a step may be called, and the closed table of its options."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import typing as t

from ..errors import Interrupt, InvalidNameError, InvalidOptionError, UnknownOptionError
from .retry import RetryPolicy

MAX_NAME_LENGTH = 100
"""Characters in the name of a step or a sequence."""

MAX_QUEUE_BYTES = 255
"""Bytes in the name of a queue: the most that AMQP takes."""

MAX_PRIORITY = 9
"""The highest priority of a step: what is sooner than all else."""

MAX_SECONDS = 10 * 365 * 86400
"""Seconds in the longest delay or limit: ten years."""

_ROW = "The run's row, not the message, makes sure that a step runs: leave it out."
_RESULT = "No result backend is used: put a result into self.data, and read the run's status."
_MESSAGE = "A message holds the run's id and version, as JSON: leave it out."
_EVENTS = "Celery sees one task for all steps: read the run's status and progress."
_WAY = "Name the queue of the step by `queue`, and route that in Celery's task_queues."
_PYDANTIC = "A step has one argument, the data: check it in perform(), or before start()."
_HANDLER = "Nothing would call it: write what it does as a step, or catch the error in perform()."
_START = "Write set({0}=...) before start(), or self.retry(countdown=...) inside a step."

CELERY_HANDLERS = frozenset(
    {"after_return", "before_start", "on_failure", "on_retry", "on_success"}
)
"""The methods that Celery calls on its own tasks, and nobody calls on a step."""

CELERY_OPTIONS: t.Mapping[str, str] = {
    **dict.fromkeys(CELERY_HANDLERS, _HANDLER),
    "abstract": "A step without perform() is abstract by itself.",
    "acks_late": _ROW,
    "acks_on_failure": _ROW,
    "acks_on_failure_or_timeout": _ROW,
    "acks_on_timeout": _ROW,
    "backend": _RESULT,
    "bind": "perform(self) has the step already; bind=True is for functions under @step.",
    "compression": _MESSAGE,
    "delivery_mode": _MESSAGE,
    "countdown": _START.format("countdown"),
    "eta": _START.format("eta"),
    "exchange": _WAY,
    "exchange_type": _WAY,
    "expires": "Call self.finish() or self.fail() in a step that comes too late, or run.cancel().",
    "ignore_result": _RESULT,
    "immediate": _WAY,
    "link": _HANDLER,
    "link_error": _HANDLER,
    "mandatory": _WAY,
    "pydantic": _PYDANTIC,
    "pydantic_context": _PYDANTIC,
    "pydantic_dump_kwargs": _PYDANTIC,
    "pydantic_strict": _PYDANTIC,
    "rate_limit": "Give the step a queue of its own, and that queue a worker with few processes.",
    "reject_on_worker_lost": _ROW,
    "resultrepr_maxsize": _RESULT,
    "retry_kwargs": "Write max_retries, and default_retry_delay for a fixed delay.",
    "retry_on_worker_lost": _ROW,
    "routing_key": _WAY,
    "send_events": _EVENTS,
    "serializer": _MESSAGE,
    "store_eager_result": _RESULT,
    "store_errors_even_if_ignored": _RESULT,
    "throws": "Name in dont_autoretry_for what should fail the run at once, or call self.fail().",
    "track_started": _RESULT,
    "trail": _EVENTS,
    "typing": "perform() takes no arguments that could be checked: leave it out.",
}
"""Celery's options that a step has not, each with what to do instead."""


def check_name(where: str, name: object) -> str:
    """Refuse a name that cannot be stored, shown, or told apart.

    :param where: What is named, for the error, for example ``"step SendReceipt"``.
    :param name: The name, at most :data:`MAX_NAME_LENGTH` characters.
    :return: The name.
    :raises InvalidNameError: It is no such text.
    """
    if not isinstance(name, str):
        problem = "is not a string"
    elif not name or name != name.strip():
        problem = "is empty, or begins or ends with a space"
    elif len(name) > MAX_NAME_LENGTH:
        problem = f"has more than {MAX_NAME_LENGTH} characters"
    elif not name.isprintable():
        problem = "has a character that cannot be shown"
    elif set(name) & set("/[]"):
        problem = "has one of the reserved characters / [ ]"
    else:
        return name
    raise InvalidNameError(
        f"The name {reprlib.repr(name)} of {where} {problem}. Give it another `name`."
    )


def seconds_problem(value: object, *, zero: bool) -> str | None:
    """Tell what is wrong with a number of seconds.

    :param value: The number to look at.
    :param zero: Whether 0 s is allowed.
    :return: What it should be, or ``None`` if it is that.
    """
    lowest = "from" if zero else "above"
    problem = f"takes a number of seconds {lowest} 0, at most {MAX_SECONDS} (ten years)"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return problem
    fits = math.isfinite(value) and 0 <= value <= MAX_SECONDS and (zero or value != 0)
    return None if fits else problem


def _queue(value: object) -> str | None:
    if isinstance(value, str):
        plain = value == value.strip() and value.isprintable()
        if plain and 0 < len(value.encode()) <= MAX_QUEUE_BYTES:
            return None
    return f"takes the name of a queue, 1 to {MAX_QUEUE_BYTES} bytes, printable, or None"


def _priority(value: object) -> str | None:
    if type(value) is int and 0 <= value <= MAX_PRIORITY:
        return None
    return f"takes a whole number from 0 to {MAX_PRIORITY}, higher is sooner, or None"


def _limit(value: object) -> str | None:
    problem = seconds_problem(value, zero=False)
    return problem and f"{problem}, or None for no limit"


def _exceptions(value: object) -> str | None:
    if not isinstance(value, tuple | list):
        return "takes a tuple of exceptions, as in (OSError,) with its comma"
    for item in value:
        if not isinstance(item, type) or not issubclass(item, BaseException):
            return "takes exception classes only"
        if issubclass(item, Interrupt):
            return "takes no interrupts: they are not caught, they end the step"
    return None


def _max_retries(value: object) -> str | None:
    if type(value) is int and value >= 0:
        return None
    return "takes a whole number from 0, or None to retry forever"


def _backoff(value: object) -> str | None:
    problem = seconds_problem(value, zero=False)
    return problem and f"{problem}, True for 1 s, or False for no backoff"


def _backoff_max(value: object) -> str | None:
    return seconds_problem(value, zero=False)


def _jitter(value: object) -> str | None:
    return None if isinstance(value, bool) else "takes True or False"


def _delay(value: object) -> str | None:
    problem = seconds_problem(value, zero=True)
    return problem and f"{problem}, or None to use the backoff"


class Option(t.NamedTuple):
    """One line of the table."""

    problem: t.Callable[[object], str | None]
    """What is wrong with a value, as the end of a sentence that begins with the option's name."""
    plain: tuple[bool | None, ...] = ()
    """Values that mean something by themselves: ``None``, ``True``, ``False``."""


OPTIONS: t.Mapping[str, Option] = {
    "queue": Option(_queue, (None,)),
    "priority": Option(_priority, (None,)),
    "time_limit": Option(_limit, (None,)),
    "soft_time_limit": Option(_limit, (None,)),
    "autoretry_for": Option(_exceptions),
    "dont_autoretry_for": Option(_exceptions),
    "max_retries": Option(_max_retries, (None,)),
    "retry_backoff": Option(_backoff, (True, False)),
    "retry_backoff_max": Option(_backoff_max),
    "retry_jitter": Option(_jitter),
    "default_retry_delay": Option(_delay, (None,)),
}
"""Every option of a step; :class:`~flask_sequence.Step` describes them."""


def near_miss(name: str, known: t.Iterable[str] = OPTIONS) -> str | None:
    """Find the option that a misspelled name was meant for.

    :param name: The name as it was written.
    :param known: The options that there are.
    :return: The option, or ``None`` when there is nothing near.
    """
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None)


def unknown_option(where: str, option: str, known: t.Iterable[str] = OPTIONS) -> UnknownOptionError:
    """Make the error for an option that there is not.

    :param where: What the option was given to, for example ``"SendReceipt"`` or ``"set()"``.
    :param option: The option as it was written.
    :param known: The options that there are.
    :return: The error, to be raised: it says what to write instead.
    """
    known = tuple(known)
    if option in CELERY_OPTIONS:
        return UnknownOptionError(
            f"{where}: {option!r} is Celery's and has no effect here. {CELERY_OPTIONS[option]}"
        )
    meant = near_miss(option, known)
    cure = f"Did you mean {meant!r}?" if meant else f"The options are {', '.join(known)}."
    return UnknownOptionError(f"{where} has no option {option!r}. {cure}")


def check_option(where: str, option: str, value: object) -> None:
    """Refuse a value that an option cannot have.

    :param where: What the option was given to, for the error.
    :param option: One of :data:`OPTIONS`.
    :param value: Its value.
    :raises InvalidOptionError: The value is of the wrong type or out of range.
    """
    row = OPTIONS[option]
    if any(value is plain for plain in row.plain):
        return
    if problem := row.problem(value):
        raise InvalidOptionError(f"{where}: {option} {problem}; it is {reprlib.repr(value)}.")


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The options of one step, checked.

    :param queue: The Celery queue; ``None`` takes the run's, then the application's.
    :param priority: 0 to 9, higher is sooner; ``None`` takes the run's, then none.
    :param time_limit: Seconds after which the process is killed; ``None`` for no limit.
    :param soft_time_limit: Seconds after which ``SoftTimeLimitExceeded`` is raised in the step.
    :param retry: When and how often a failing step is tried again.
    """

    queue: str | None = None
    priority: int | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)

    @classmethod
    def from_mapping(cls, where: str, values: t.Mapping[str, t.Any]) -> StepOptions:
        """Check options as they were written and put the defaults to them.

        :param where: The step's name, for the errors.
        :param values: The options that were written.
        :return: The options.
        :raises UnknownOptionError: There is no such option.
        :raises InvalidOptionError: A value is of the wrong type or out of range.
        """
        for option, value in values.items():
            if option not in OPTIONS:
                raise unknown_option(where, option)
            check_option(where, option, value)
        hard, soft = values.get("time_limit"), values.get("soft_time_limit")
        if hard is not None and soft is not None and soft >= hard:
            raise InvalidOptionError(
                f"{where}: soft_time_limit ({soft} s) must be below time_limit ({hard} s), or the"
                " process is killed before the step can end by itself."
            )
        return cls(values.get("queue"), values.get("priority"), hard, soft, _policy(values))


_POLICY: t.Mapping[str, tuple[str, t.Callable[[t.Any], t.Any]]] = {
    "max_retries": ("max_retries", lambda value: value),
    "autoretry_for": ("autoretry_for", tuple),
    "dont_autoretry_for": ("dont_autoretry_for", tuple),
    "retry_backoff": ("backoff", lambda value: float(value) if value else None),
    "retry_backoff_max": ("backoff_max", float),
    "retry_jitter": ("jitter", bool),
    "default_retry_delay": ("default_delay", lambda value: value),
}


def _policy(values: t.Mapping[str, t.Any]) -> RetryPolicy:
    return RetryPolicy(
        **{
            field: convert(values[option])
            for option, (field, convert) in _POLICY.items()
            if option in values
        }
    )
