"""The states of a run, and the moves between them."""

from __future__ import annotations

import dataclasses
import enum
import typing as t


class Status(enum.StrEnum):
    """Where a run stands. Stored as its lower-case word.

    .. versionadded:: 0.1
    """

    WAITING = "waiting"
    """For its time, or for something; no process holds it."""
    RUNNING = "running"
    """Claimed by a process that performs its step."""
    FAILED = "failed"
    """Out of retries or failed by its step; ``run.retry()`` takes it up again."""
    FINISHED = "finished"
    """All steps are done. Final."""
    CANCELLED = "cancelled"
    """Stopped by ``run.cancel()``. Final."""
    PAUSED = "paused"
    """Held back by a person."""
    BLOCKED = "blocked"
    """Due, but no worker knows its sequence or its step."""

    @property
    def final(self) -> bool:
        """Whether no move leads out of this state."""
        return not MOVES[self]


class StepStatus(enum.StrEnum):
    """How one attempt at a step ended. Stored as its lower-case word.

    .. versionadded:: 0.1
    """

    FINISHED = "finished"
    """Its writes are committed."""
    FAILED = "failed"
    """It failed, and the run with it."""
    RETRY = "retry"
    """It failed, and is tried again."""
    CRASHED = "crashed"
    """Its process ended, or was given up, before it did."""


MOVES: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.PAUSED, Status.BLOCKED, Status.CANCELLED}),
    Status.RUNNING: frozenset(
        {Status.WAITING, Status.RUNNING, Status.FINISHED, Status.FAILED, Status.CANCELLED}
    ),
    Status.FAILED: frozenset({Status.WAITING, Status.CANCELLED}),
    Status.PAUSED: frozenset({Status.WAITING, Status.CANCELLED}),
    Status.BLOCKED: frozenset({Status.WAITING, Status.CANCELLED}),
    Status.FINISHED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""The allowed moves; every one of them is a conditional UPDATE in ``rows.moves``."""

ACTIVE = frozenset(status for status, moves in MOVES.items() if moves)
"""States in which a run keeps its key."""

FINAL = frozenset(Status) - ACTIVE
"""States that no move leads out of."""


class StepState(enum.StrEnum):
    """Where a step of a run is: what :class:`Status` is for the run, and three more.

    .. versionadded:: 0.1
    """

    FINISHED = "finished"
    """It is done."""
    SKIPPED = "skipped"
    """It was not run, and will not be."""
    TO_COME = "to come"
    """Those before it are not done yet."""
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    BLOCKED = "blocked"


@dataclasses.dataclass(frozen=True)
class StepProgress:
    """A step of a run, and where it is.

    :param name: The name of the step.
    :param state: Where it is.

    .. versionadded:: 0.1
    """

    name: str
    state: StepState


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    :param position: How many of its steps are done.
    :param total: How many steps it has.
    :param steps: Each of them, in order.

    .. versionadded:: 0.1
    """

    position: int
    total: int
    steps: tuple[StepProgress, ...]


def progress_of(
    names: t.Sequence[str], step: str, status: Status, done: t.Collection[str]
) -> Progress:
    """Tell how far a run has come, whatever was renamed, added or removed since it began.

    :param names: The steps of its sequence, as the code has them now; none: it is not known.
    :param step: The step that it is at.
    :param status: Its status.
    :param done: The steps that its history tells of as finished, in order.
    """
    if step in names:
        place = names.index(step)
        before, after = list(names[:place]), names[place + 1 :]
    else:
        before = [name for name in done if name != step]
        after = [name for name in names[len(before) + 1 :] if name not in before]
    over = status in (Status.FINISHED, Status.CANCELLED)
    states = {
        **{name: StepState.FINISHED if name in done else StepState.SKIPPED for name in before},
        step: StepState(status.value),
        **dict.fromkeys(after, StepState.SKIPPED if over else StepState.TO_COME),
    }
    steps = tuple(StepProgress(name, state) for name, state in states.items())
    position = sum(each.state is StepState.FINISHED for each in steps)
    return Progress(position, len(steps), steps)
