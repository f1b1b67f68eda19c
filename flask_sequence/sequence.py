"""BaseSequence: what the user inherits from; thin methods over ``starting``."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t

from .definition.habits import AT_SEQUENCE, set_traps
from .definition.options import CELERY_HANDLERS, CELERY_OPTIONS, OPTIONS, unknown_option
from .definition.registry import FunctionStep, SequenceDefinition, Step, define_sequence
from .engine import starting
from .engine.starting import StartOptions
from .errors import EmptySequenceError, InvalidOptionError, UnknownOptionError
from .rows.models import SequenceRun

CHOICES = tuple(field.name for field in dataclasses.fields(StartOptions))
"""The options of a start."""


def _refuse_unnamed(name: str, unnamed: t.Sequence[object]) -> None:
    if not unnamed:
        return
    data = unnamed[0]
    names = [key for key in data if isinstance(key, str)] if isinstance(data, t.Mapping) else []
    shown = f"{names[0]}=..." if names and names[0].isidentifier() else "email=..."
    raise InvalidOptionError(
        f"{name}.start() takes its data by name: write {name}.start({shown}), or"
        f" {name}.start(**data) for a dict."
    )


def _refuse_options(name: str, data: t.Mapping[str, t.Any]) -> None:
    chosen = [key for key in CHOICES if key in data]
    if not chosen:
        return
    shown, rest = ", ".join(f"{key}=..." for key in chosen), "..." * (len(data) > len(chosen))
    raise InvalidOptionError(
        f"{name}.start() takes data, and {', '.join(chosen)} would be stored as such: for the"
        f" option write {name}.set({shown}).start({rest}). To store it all the same, write"
        f" {name}.set().start({shown})."
    )


def _refuse_misplaced(cls: type[BaseSequence]) -> None:
    for owner in cls.__mro__:
        if owner not in BaseSequence.__mro__:
            for name, value in vars(owner).items():
                behaviour = callable(value) or hasattr(value, "__get__")
                if name in CELERY_HANDLERS or not behaviour:
                    _refuse_option(owner.__qualname__, name)


def _refuse_option(where: str, name: str) -> None:
    if name == "abstract":
        raise UnknownOptionError(
            f"{where}: 'abstract' has no effect here. A sequence without `steps` is abstract by"
            " itself."
        )
    if name in CHOICES:
        also = f", or {name} on a step" if name in OPTIONS else ""
        raise UnknownOptionError(
            f"{where}: {name!r} has no effect on a sequence, since it is an option of a start:"
            f" write {where}.set({name}=...).start(...){also}."
        )
    if name in OPTIONS:
        raise UnknownOptionError(
            f"{where}: {name!r} has no effect on a sequence, since it is an option of a step: set"
            f" it in the class body of the step, or by @step({name}=...)."
        )
    if name in CELERY_OPTIONS:
        raise unknown_option(where, name)


@dataclasses.dataclass(frozen=True)
class PreparedSequence:
    """A sequence with the options of its next start, returned by :meth:`BaseSequence.set`.

    :param definition: The sequence.
    :param options: The options that ``set()`` was given.

    .. versionadded:: 0.1
    """

    definition: SequenceDefinition
    options: StartOptions

    def start(self, /, *unnamed: t.Never, **data: t.Any) -> SequenceRun:
        """Start a run; see :meth:`BaseSequence.start`. Every keyword argument is data here.

        :param unnamed: Not allowed: data is passed by name.
        :param data: The data that the steps share.
        :return: The run; with a key, the active run of that key if there is one.
        :raises KeyBusyError: If another transaction is starting a run with the same key and does
            not end in time.
        :raises DataError: If the data cannot be stored.
        :raises SetupError: If no application is active, or the extension is not initialised.

        .. versionadded:: 0.1
        """
        _refuse_unnamed(self.definition.name, unnamed)
        return starting.start(self.definition, data, self.options)

    def start_many(self, many: t.Iterable[t.Mapping[str, t.Any]], /) -> list[int]:
        """Start many runs at once; see :meth:`BaseSequence.start_many`.

        :param many: The data of each run.
        :return: The ids of the runs, in the same order.
        :raises InvalidOptionError: If a key was set, since a key names a single run.
        :raises DataError: If the data of one run cannot be stored; then none is started.
        :raises SetupError: If no application is active, or the extension is not initialised.

        .. versionadded:: 0.1
        """
        return starting.start_many(self.definition, many, self.options)


class BaseSequence:
    """An ordered list of steps that share persistent data; subclass it and list the steps.

    .. code-block:: python

        class ContactForm(BaseSequence):
            steps = (CreateMessage, assign, SendReceipt)

        run = ContactForm.start(name="Joel")
        db.session.commit()

    A subclass without ``steps`` is abstract: a base class for other sequences. It takes no options:
    those of a start are for :meth:`set`, and those of a step for the step.

    .. versionadded:: 0.1
    """

    name: t.ClassVar[str]
    """The name under which runs are stored; by default the name of the class."""
    steps: t.ClassVar[t.Sequence[type[Step[t.Any]] | FunctionStep[..., t.Any]]]
    """The steps, in order."""
    step_names: t.ClassVar[tuple[str, ...]] = ()
    """The names of the steps, in order."""
    _definition: t.ClassVar[SequenceDefinition | None] = None

    def __init_subclass__(cls, **kwargs: t.Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        _refuse_misplaced(cls)
        if hasattr(cls, "steps"):
            cls._definition = define_sequence(cls, cls.name, cls.steps)
            cls.step_names = cls._definition.step_names

    def __new__(cls, /, *unnamed: t.Never, **data: t.Any) -> SequenceRun:  # type: ignore[misc]
        """Start a run; shorthand for :meth:`start`.

        :param unnamed: Not allowed: data is passed by name.
        :param data: The data that the steps share, by name.
        :return: The run.
        :raises EmptySequenceError: If the class has no steps.
        :raises DataError: If the data cannot be stored.
        :raises SetupError: If no application is active, or the extension is not initialised.

        .. versionadded:: 0.1
        """
        return cls.start(*unnamed, **data)

    @classmethod
    def start(cls, /, *unnamed: t.Never, **data: t.Any) -> SequenceRun:
        """Start a run as part of the caller's transaction; it runs once that is committed.

        The data is checked and a row is added to ``db.session``; no SQL is sent yet.

        :param unnamed: Not allowed: data is passed by name.
        :param data: The data that the steps share, by name. The names of the options of :meth:`set`
            are refused, since they would have no effect here; ``set().start(...)`` stores them as
            data.
        :return: The run; its id is known after the flush.
        :raises InvalidOptionError: If an argument has no name, or the name of an option of
            :meth:`set`.
        :raises EmptySequenceError: If the class has no steps.
        :raises DataError: If the data cannot be stored; the message says where.
        :raises SetupError: If no application is active, or the extension is not initialised.

        .. versionadded:: 0.1
        """
        definition = cls._defined()
        _refuse_unnamed(definition.name, unnamed)
        _refuse_options(definition.name, data)
        return starting.start(definition, data, StartOptions())

    @classmethod
    def start_many(cls, many: t.Iterable[t.Mapping[str, t.Any]], /) -> list[int]:
        """Start many runs at once, as part of the caller's transaction.

        :param many: The data of each run. For very many runs, call this and commit in batches.
        :return: The ids of the runs, in the same order.
        :raises EmptySequenceError: If the class has no steps.
        :raises DataError: If the data of one run cannot be stored; then none is started.
        :raises SetupError: If no application is active, or the extension is not initialised.

        .. versionadded:: 0.1
        """
        return starting.start_many(cls._defined(), many, StartOptions())

    @classmethod
    def set(
        cls,
        *,
        key: str | None = None,
        countdown: float | None = None,
        eta: datetime.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        **unknown: t.Never,
    ) -> PreparedSequence:
        """Set options for the next start, separately from its data.

        :param key: Your name for the run. While a run of this sequence with that key is neither
            finished nor cancelled, a start returns that run and ignores its own data.
        :param countdown: Seconds until the run is due.
        :param eta: When the run is due; a timezone-aware datetime.
        :param queue: The queue for steps that set none.
        :param priority: The priority for steps that set none: 0 to 9, higher is sooner.
        :param unknown: Not allowed: there are no other options.
        :return: The sequence with these options, to call ``start`` or ``start_many`` on.
        :raises EmptySequenceError: If the class has no steps.
        :raises InvalidOptionError: If a value is invalid.
        :raises UnknownOptionError: If there is no such option.

        .. versionadded:: 0.1
        """
        for name in unknown:
            raise unknown_option(f"{cls.__name__}.set()", name, CHOICES)
        options = StartOptions(
            key=key, countdown=countdown, eta=eta, queue=queue, priority=priority
        )
        return PreparedSequence(cls._defined(), options)

    @classmethod
    def _defined(cls) -> SequenceDefinition:
        if cls._definition is None:
            raise EmptySequenceError(
                f"{cls.__name__} has no steps and cannot be started: start a subclass that lists"
                " some, as in steps = (CreateMessage, SendReceipt)."
            )
        return cls._definition


set_traps(BaseSequence, AT_SEQUENCE)
