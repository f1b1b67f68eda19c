"""What can go wrong, one exception per cause, and the interrupts, which are not errors."""

from __future__ import annotations

import typing as t


class SequenceError(Exception):
    """The base class of every error that flask-sequence raises.

    The message ends with the place in the documentation that explains the causes and the cure.

    .. versionadded:: 0.1
    """

    def __str__(self) -> str:
        return f"{super().__str__()} [docs: errors#{type(self).__name__.lower()}]"


class SetupError(SequenceError, RuntimeError):
    """The extension, the database or Celery is not set up; the message says what to do.

    .. versionadded:: 0.1
    """


class ConfigError(SequenceError, ValueError):
    """A ``SEQUENCE_*`` setting is misspelled or has an invalid value.

    :param key: The key in ``app.config``.
    :param problem: What is wrong with it, and how to fix it.

    .. versionadded:: 0.1
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key


class DefinitionError(SequenceError, TypeError):
    """The base class of errors in the way a step or a sequence is written.

    Most are raised where the class or function is defined, so at import and not in a worker; those
    about the options of a call are raised by that call.

    .. versionadded:: 0.1
    """


class InvalidStepError(DefinitionError):
    """An item of ``steps``, or what ``@step`` decorates, cannot be used as a step.

    .. versionadded:: 0.1
    """


class EmptySequenceError(DefinitionError):
    """A sequence has no steps.

    .. versionadded:: 0.1
    """


class DuplicateStepError(DefinitionError):
    """Two steps of a sequence have the same name.

    .. versionadded:: 0.1
    """


class DuplicateSequenceError(DefinitionError):
    """Two sequences in different modules have the same name.

    .. versionadded:: 0.1
    """


class InvalidNameError(DefinitionError):
    """The name of a step or a sequence cannot be stored or shown.

    .. versionadded:: 0.1
    """


class ReservedNameError(DefinitionError):
    """A step class overrides a name that flask-sequence sets on every step.

    .. versionadded:: 0.1
    """


class UnknownOptionError(DefinitionError):
    """An option is misspelled, or is one of Celery's that has no meaning here.

    .. versionadded:: 0.1
    """


class InvalidOptionError(DefinitionError, ValueError):
    """An option has a value of the wrong type or out of range.

    .. versionadded:: 0.1
    """


class AsyncStepError(DefinitionError):
    """``perform`` is ``async``, but Flask's ``async`` extra is not installed.

    .. versionadded:: 0.1
    """


class DataError(SequenceError, TypeError):
    """Data contains a value that not every database would return as it was stored.

    :param path: Where the value is, for example ``data["order"]["lines"][3]``.
    :param problem: What is wrong with it, and how to fix it.

    .. versionadded:: 0.1
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class DataTooLargeError(DataError):
    """The data takes more bytes than ``SEQUENCE_MAX_DATA_BYTES`` allows.

    .. versionadded:: 0.1
    """


class UnknownSequenceError(SequenceError, LookupError):
    """No sequence with that name is known to this process.

    :param name: The name that was asked for.
    :param known: The names that are known.

    .. versionadded:: 0.1
    """

    def __init__(self, name: str, known: t.Iterable[str] = ()) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"No sequence {name!r} is known here (known: {names}). Check the name, or name the"
            " module that defines it in SEQUENCE_IMPORTS."
        )
        self.name = name


class RunNotFoundError(SequenceError, LookupError):
    """There is no committed run with that id.

    :param run_id: The id that was looked for; ``None`` if the run has no id yet.

    .. versionadded:: 0.1
    """

    def __init__(self, run_id: int | None) -> None:
        super().__init__(
            "There is no run in the database yet: call db.session.commit() after start()."
            if run_id is None
            else f"There is no run {run_id} in the database: its start is not committed, or it has"
            " ended and was deleted after SEQUENCE_RETENTION."
        )
        self.run_id = run_id


class MoveRefusedError(SequenceError, ValueError):
    """A run cannot be retried or cancelled in its current status.

    :param run_id: The id of the run.
    :param problem: Why the move is refused, and what to do instead.

    .. versionadded:: 0.1
    """

    def __init__(self, run_id: int, problem: str) -> None:
        super().__init__(f"Run {run_id} {problem}")
        self.run_id = run_id


class ReadOnlyError(SequenceError, AttributeError):
    """A row of flask-sequence was written through the ORM; the message says what to call instead.

    .. versionadded:: 0.1
    """


class BusyError(SequenceError, TimeoutError):
    """Another open transaction locks what a call needs, and did not end in time.

    The caller's transaction is left as it was before the call, with one exception: if MariaDB or
    MySQL detected a deadlock, it is lost, and anything but a rollback raises.

    .. versionadded:: 0.1
    """


class KeyBusyError(BusyError):
    """Another transaction is starting a run with the same key and did not end in time.

    :param sequence: The name of the sequence.
    :param key: The key.

    .. versionadded:: 0.1
    """

    def __init__(self, sequence: str, key: str) -> None:
        super().__init__(
            f"Another open transaction is starting {sequence} with the key {key!r} and does not"
            " end. Roll back, and start again; keep transactions with a keyed start short."
        )
        self.sequence = sequence
        self.key = key


class StepInterrupted(SequenceError):  # noqa: N818
    """A step run by ``Step.call()`` was ended by ``self.retry()``, ``fail()`` or ``finish()``.

    :param interrupt: The interrupt that the step raised.

    .. versionadded:: 0.1
    """

    def __init__(self, interrupt: Interrupt) -> None:
        super().__init__(f"The step was ended by {interrupt}.")
        self.interrupt = interrupt


class TransactionDoomedError(SequenceError):
    """The server has dropped earlier writes of the step's transaction; it cannot be committed."""


class Interrupt(BaseException):
    """Ends a step from inside; not an error, so ``except Exception`` in a step lets it through."""


class RetryInterrupt(Interrupt):
    """``self.retry()``: roll back to the last checkpoint and run the step again later.

    :param cause: The exception that is the reason, if there is one.
    :param countdown: Seconds to wait; ``None`` uses the delay from the step's options.
    """

    def __init__(self, cause: BaseException | None = None, countdown: float | None = None) -> None:
        super().__init__("self.retry()")
        self.cause = cause
        self.countdown = countdown


class FailInterrupt(Interrupt):
    """``self.fail()``: roll back to the last checkpoint and fail the run, without a retry.

    :param reason: One sentence, stored in ``run.error``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"self.fail({reason!r})")
        self.reason = reason


class FinishInterrupt(Interrupt):
    """``self.finish()``: commit, and end the run here without its remaining steps."""

    def __init__(self) -> None:
        super().__init__("self.finish()")


class ClaimLost(Interrupt):
    """The run was cancelled, or taken over by another process; nothing more can be committed."""

    def __init__(self) -> None:
        super().__init__(
            "this attempt no longer holds its run, which was cancelled or taken over, or whose step"
            " has ended; nothing was committed"
        )
