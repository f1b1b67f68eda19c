"""The statuses of a run, and the moves between them."""

from __future__ import annotations

import dataclasses
import enum
import typing as t


class Status(enum.StrEnum):
    """The status of a run. Stored as its lower-case word.

    .. versionadded:: 0.1
    """

    WAITING = "waiting"
    """Scheduled, queued, or between retries; no process holds it."""
    RUNNING = "running"
    """Claimed by a process that runs its step."""
    FAILED = "failed"
    """Out of retries, or failed by its step; ``run.retry()`` resumes it."""
    FINISHED = "finished"
    """All steps are done, or one called ``self.finish()``. Final."""
    CANCELLED = "cancelled"
    """Stopped by ``run.cancel()``. Final."""
    PAUSED = "paused"
    """Held back by a person."""
    BLOCKED = "blocked"
    """Due, but no worker knows its sequence or its step."""

    @property
    def final(self) -> bool:
        """Whether no move leads out of this status."""
        return not MOVES[self]


class StepStatus(enum.StrEnum):
    """How one attempt at a step ended. Stored as its lower-case word.

    .. versionadded:: 0.1
    """

    FINISHED = "finished"
    """Its writes are committed."""
    FAILED = "failed"
    """It failed, and so did the run."""
    RETRY = "retry"
    """It failed, and the step is retried."""
    CRASHED = "crashed"
    """Its process died, or was given up, before the attempt ended."""


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
"""Statuses in which a run keeps its key."""

FINAL = frozenset(Status) - ACTIVE
"""Statuses that no move leads out of."""


class StepState(enum.StrEnum):
    """The state of a step of a run: the words of :class:`Status`, and two more.

    .. versionadded:: 0.1
    """

    FINISHED = "finished"
    """The step is done."""
    SKIPPED = "skipped"
    """The step did not run, and will not."""
    TO_COME = "to come"
    """The steps before it are not done yet."""
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    BLOCKED = "blocked"


@dataclasses.dataclass(frozen=True)
class StepProgress:
    """A step of a run, and its state.

    :param name: The name of the step.
    :param state: The state of the step.

    .. versionadded:: 0.1
    """

    name: str
    state: StepState


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    :param position: The number of steps that are done.
    :param total: The number of steps.
    :param steps: The steps with their states, in order.

    .. versionadded:: 0.1
    """

    position: int
    total: int
    steps: tuple[StepProgress, ...]


def progress_of(
    names: t.Sequence[str], step: str, status: Status, done: t.Collection[str]
) -> Progress:
    """Tell how far a run has come, whatever was renamed, moved, added or removed since.

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

    def passed(some: t.Iterable[str]) -> dict[str, StepState]:
        return {name: StepState.FINISHED if name in done else StepState.SKIPPED for name in some}

    # What comes after the step of a run that goes on runs again, even if it is done.
    to_come = dict.fromkeys(after, StepState.TO_COME)
    rest = passed(after) if status.final else to_come
    states = {**passed(before), step: StepState(status.value), **rest}
    steps = tuple(StepProgress(name, state) for name, state in states.items())
    position = sum(each.state is StepState.FINISHED for each in steps)
    return Progress(position, len(steps), steps)
