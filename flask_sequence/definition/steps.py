"""Step: one unit of a sequence, checked when its class is defined."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.util
import inspect
import logging
import reprlib
import sys
import typing as t
import uuid
import weakref

from typing_extensions import TypeVar

from ..errors import (
    AsyncStepError,
    FailInterrupt,
    FinishInterrupt,
    Interrupt,
    InvalidOptionError,
    InvalidStepError,
    ReservedNameError,
    RetryInterrupt,
    StepInterrupted,
    UnknownOptionError,
)
from .callables import Perform, check_function, check_result, takes, written
from .data import article, decode_text, encode
from .habits import AT_STEP, IN_STEP, STEP_CURE, not_here, set_traps, without_traps
from .options import (
    CELERY_HANDLERS,
    CELERY_OPTIONS,
    OPTIONS,
    StepOptions,
    check_name,
    near_miss,
    seconds_problem,
    unknown_option,
)

logger: logging.Logger = logging.getLogger("flask_sequence")

DataT = TypeVar("DataT", default=dict[str, t.Any])

RESERVED: t.Mapping[str, str] = {
    "_check_end": "Give yours another name.",
    "_ended_by": "Give yours another name.",
    "_interrupt": "Give yours another name.",
    "_prepare": "Give yours another name.",
    "attempt": "Give yours another name.",
    "call": "Give yours another name.",
    "data": "Give yours another name; to type self.data inherit from Step[YourTypedDict].",
    "fail": "Give yours another name.",
    "finish": "Give yours another name.",
    "idempotency_key": "Give yours another name.",
    "retry": "Give yours another name; the number of retries is the option max_retries.",
    "run": "Give yours another name; put the work of the step in perform().",
}
"""The names that a step class must not set, each with what to do instead."""


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a step knows about its run.

    :param id: The run's id; ``None`` under :meth:`Step.call`.
    :param uid: A stable id that is never used again, even after the run is deleted.
    :param sequence: The name of the sequence; empty under :meth:`Step.call`.
    :param key: The key from ``set(key=...)``, or ``None``.
    :param created_at: When the run was started, in UTC.

    .. versionadded:: 0.1
    """

    id: int | None
    uid: uuid.UUID
    sequence: str
    key: str | None
    created_at: datetime.datetime


class Step(t.Generic[DataT]):
    """One unit of a sequence: a class with ``perform()``, listed in the sequence's ``steps``.

    A step is not tied to one sequence; several sequences may list it. Its name is that of its
    class, or ``name`` in the class body. A step class without ``perform()`` is a base class, whose
    options are inherited. ``Step[SomeTypedDict]`` types :attr:`data`. The options of a step are
    class attributes, and their list is complete.

    =========================  ================  ===============  =================================
    Option                     Type, unit        Default          Difference from Celery
    =========================  ================  ===============  =================================
    ``queue``                  string or None    None: that of    takes precedence over
                                                 the run, then    ``set(queue=...)``, which applies
                                                 SEQUENCE_QUEUE   to all other steps of a run
    ``priority``               0 to 9 or None    None: that of    higher is sooner on every broker;
                                                 the run, then    none counts as 0, but on Redis as
                                                 none             9, the soonest
    ``time_limit``             seconds or None   None: no limit   killing the process counts as a
                                                                  crash, and the step runs again;
                                                                  prefork pool only
    ``soft_time_limit``        seconds or None   None: no limit   below ``time_limit``; raised in
                                                                  the step, as an ordinary failure;
                                                                  prefork pool only
    ``autoretry_for``          exceptions        any              () in Celery; when set, any other
                                                 ``Exception``    exception fails the run at once
    ``dont_autoretry_for``     exceptions        ()               none
    ``max_retries``            number, or None   25: that of the  3 in Celery; attempts are one
                               for no limit      settings         more; crashes count separately
    ``retry_backoff``          True, False or    True: 1 s        False in Celery; the first delay,
                               seconds                            which doubles with each retry
    ``retry_backoff_max``      seconds           600 s            none
    ``retry_jitter``           True or False     True             50 to 100 % of the delay; 0 to
                                                                  100 % in Celery
    ``default_retry_delay``    seconds or None   None             180 s in Celery; when set, used
                                                                  without backoff and jitter
    =========================  ================  ===============  =================================

    .. versionadded:: 0.1
    """

    name: t.ClassVar[str]
    queue: t.ClassVar[str | None]
    priority: t.ClassVar[int | None]
    time_limit: t.ClassVar[float | None]
    soft_time_limit: t.ClassVar[float | None]
    autoretry_for: t.ClassVar[tuple[type[BaseException], ...]]
    dont_autoretry_for: t.ClassVar[tuple[type[BaseException], ...]]
    max_retries: t.ClassVar[int | None]
    retry_backoff: t.ClassVar[bool | float]
    retry_backoff_max: t.ClassVar[float]
    retry_jitter: t.ClassVar[bool]
    default_retry_delay: t.ClassVar[float | None]

    data: DataT
    """The data that the steps of the run share; read and change it, nested values included."""
    run: RunInfo
    """The run that the step belongs to."""
    attempt: int
    """1 for the first attempt at this step of this run, then 2, and so on."""
    _interrupt: Interrupt | None = None
    _data_name: t.ClassVar[str] = "self.data"
    """What :attr:`data` is called in the body of the step."""

    def __init_subclass__(cls, **kwargs: t.Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__
        perform = vars(cls).get("perform")
        if inspect.isfunction(perform) and not inspect.iscoroutinefunction(perform):
            cls.perform = Perform(perform)  # type: ignore[method-assign, assignment]
        check_step(cls)

    if not t.TYPE_CHECKING:  # pragma: no branch

        def __new__(cls, *args: t.Any, **kwargs: t.Any) -> t.Self:
            if (args or kwargs) and cls.__init__ is object.__init__:
                raise InvalidStepError(
                    f"{cls.__name__}() takes no arguments. {STEP_CURE.format(name=cls.__name__)}"
                )
            return super().__new__(cls)

        def __getattr__(self, name: str) -> t.NoReturn:
            owner = f"{type(self).__name__!r} object"
            if name in IN_STEP:
                raise not_here(owner, name, IN_STEP[name])
            if name in OPTIONS:
                told = "The step does not set this option: the default applies."
                raise not_here(owner, name, told)
            problem = f"{owner} has no attribute {name!r}"
            if name in RESERVED:
                problem = (
                    f"A step has {name!r} only while it runs: "
                    f"{type(self).__name__}.call(data) runs it in place."
                )
            raise AttributeError(problem, name=name, obj=self)

        def __dir__(self) -> t.Iterable[str]:
            return without_traps(self, super().__dir__())

    def perform(self) -> t.Any:
        """Do the work of the step; override it with ``def`` or ``async def``.

        The return value is discarded; put what later steps need into :attr:`data`. The method may
        run more than once, so send :attr:`idempotency_key` along with what it does outside the
        database.

        :return: Anything; it is discarded.
        :raises InvalidStepError: If it is not overridden.

        .. versionadded:: 0.1
        """
        raise InvalidStepError(f"Step {self.name} has no perform(): write `def perform(self)`.")

    @property
    def idempotency_key(self) -> str:
        """A string that stays the same for this run and step, across all attempts.

        .. versionadded:: 0.1
        """
        return str(uuid.uuid5(self.run.uid, self.name))

    def retry(self, exc: BaseException | None = None, countdown: float | None = None) -> t.NoReturn:
        """Roll back to the last checkpoint and run the step again later; this counts as a retry.

        :param exc: The reason; ``None`` uses the exception that is being handled, if any.
        :param countdown: Seconds to wait; ``None`` uses the delay from the step's options.
        :raises RetryInterrupt: Always. It is not an ``Exception``, and takes effect even if it is
            caught.
        :raises InvalidOptionError: If ``exc`` is not an exception or ``countdown`` not a delay.

        .. versionadded:: 0.1
        """
        _check_retry(self.name, exc, countdown)
        cause = sys.exception() if exc is None else exc
        self._interrupt = RetryInterrupt(cause, countdown)
        raise self._interrupt from cause

    def fail(self, reason: str) -> t.NoReturn:
        """Roll back to the last checkpoint and fail the run, without further retries.

        :param reason: One sentence, stored in ``run.error``.
        :raises FailInterrupt: Always. It is not an ``Exception``, and takes effect even if it is
            caught.

        .. versionadded:: 0.1
        """
        self._interrupt = FailInterrupt(str(reason))
        raise self._interrupt

    def finish(self) -> t.NoReturn:
        """Commit, and end the run here without its remaining steps.

        :raises FinishInterrupt: Always. It is not an ``Exception``, and takes effect even if it is
            caught.

        .. versionadded:: 0.1
        """
        self._interrupt = FinishInterrupt()
        raise self._interrupt

    @classmethod
    def call(cls, data: t.Mapping[str, t.Any]) -> DataT:
        """Run the step in place, in the caller's session, on a copy of the data; for tests.

        Nothing is committed, rolled back or retried, and no run is created: ``self.run.id`` is
        ``None`` and ``self.run.uid`` is a new one.

        :param data: The data for the step.
        :return: The data as the step left it.
        :raises DataError: If the data, before or after the step, cannot be stored.
        :raises StepInterrupted: If the step called ``retry()``, ``fail()`` or ``finish()``.

        .. versionadded:: 0.1
        """
        now = datetime.datetime.now(datetime.UTC)
        run = RunInfo(id=None, uid=uuid.uuid4(), sequence="", key=None, created_at=now)
        step = cls._prepare(run, decode_text(encode(data)), 1)
        try:
            _perform_in_place(step)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            interrupt = step._ended_by(error)
            if isinstance(interrupt, Interrupt):
                raise StepInterrupted(interrupt) from interrupt
            raise
        return t.cast(DataT, decode_text(encode(t.cast(dict[str, t.Any], step.data))))

    @classmethod
    def _prepare(cls, run: RunInfo, data: dict[str, t.Any], attempt: int) -> t.Self:
        step = cls.__new__(cls)
        step.run, step.data, step.attempt = run, t.cast(DataT, data), attempt
        cls.__init__(step)  # After the rest, so that a step's own __init__ can read it.
        return step

    def _ended_by(self, error: BaseException) -> BaseException:
        if isinstance(error, AttributeError) and _is_key(error.obj, error.name):
            error.add_note(f'Data is made of dicts: write ["{error.name}"] for .{error.name}')
        # A task group wraps an interrupt, and what catches it may raise something else.
        return self._interrupt or error

    def _check_end(self, result: object) -> None:
        if result is not None:
            check_result(self.name, result)
            _warn_of_result(self, result)
        if self._interrupt is not None:  # swallowed, by an `except BaseException`
            raise self._interrupt


set_traps(Step, AT_STEP)

_with_result: weakref.WeakSet[type[Step[t.Any]]] = weakref.WeakSet()
"""The steps of which it was told that they return something."""


def _warn_of_result(step: Step[t.Any], result: object) -> None:
    if type(step) in _with_result:
        return
    _with_result.add(type(step))
    # A handler of the application's that raises must not fail the step.
    with contextlib.suppress(Exception):
        logger.warning(
            "%s returned %s, which is not kept: write it into %s",
            step.name,
            article(type(result)),
            step._data_name,
        )


def _is_key(owner: object, name: object) -> bool:
    return type(owner) is dict and name in owner


def _perform_in_place(step: Step[t.Any]) -> None:
    perform = step.perform
    if inspect.iscoroutinefunction(perform):
        from asgiref.sync import async_to_sync  # Optional: comes with flask[async].

        perform = async_to_sync(perform)
    step._check_end(perform())


def _check_retry(where: str, exc: object, countdown: object) -> None:
    if exc is not None and not isinstance(exc, BaseException):
        raise InvalidOptionError(
            f"{where}: self.retry(exc=...) takes an exception; it is {reprlib.repr(exc)}."
            " For the delay write self.retry(countdown=...)."
        )
    problem = None if countdown is None else seconds_problem(countdown, zero=True)
    if problem:
        raise InvalidOptionError(
            f"{where}: self.retry(countdown=...) {problem}; it is {reprlib.repr(countdown)}."
        )


def check_step(cls: type[Step[t.Any]]) -> StepOptions:
    """Check a step class as it stands now.

    :param cls: The class, with or without ``perform()``.
    :return: Its options.
    :raises DefinitionError: One of its leaves: a name, an option or a method is wrong.
    """
    check_name(f"step {cls.__qualname__}", cls.name)
    for owner in cls.__mro__:
        if owner not in Step.__mro__:
            for attribute, value in vars(owner).items():
                _check_attribute(owner.__qualname__, attribute, value)
    perform = written(cls, "perform")
    if perform is not Step.perform:
        check_function(f"perform() of step {cls.name}", perform, 1, "def perform(self)")
        if inspect.iscoroutinefunction(perform) and importlib.util.find_spec("asgiref") is None:
            raise AsyncStepError(
                f"Step {cls.name} is async, which needs an extra of Flask: install flask[async],"
                " or write it without async."
            )
    if not takes(cls.__init__, 1):
        raise InvalidStepError(
            f"__init__() of step {cls.name} requires arguments, and a worker passes none: read"
            " self.data in perform(), or give each argument a default."
        )
    written_options = {name: getattr(cls, name) for name in OPTIONS if hasattr(cls, name)}
    options = StepOptions.from_mapping(cls.name, written_options)
    if options.soft_time_limit is not None and inspect.iscoroutinefunction(perform):
        # Its event loop runs in a thread, and the exception would be raised beside it.
        raise InvalidOptionError(
            f"{cls.name}: soft_time_limit cannot end an async step: use asyncio.timeout() in"
            " perform(), or time_limit, which kills the process."
        )
    return options


def _check_attribute(where: str, name: str, value: object) -> None:
    if name in RESERVED:
        raise ReservedNameError(
            f"{where} sets {name!r}, which every step has from flask-sequence. {RESERVED[name]}"
        )
    if name.startswith("_") or name in OPTIONS:
        return
    behaviour = callable(value) or hasattr(value, "__get__")
    if name in CELERY_HANDLERS or (name in CELERY_OPTIONS and not behaviour):
        raise unknown_option(where, name)
    meant = None if behaviour else near_miss(name)
    if meant:
        raise UnknownOptionError(
            f"{where} has no option {name!r}. Did you mean {meant!r}? An attribute of your own"
            " needs another name."
        )
