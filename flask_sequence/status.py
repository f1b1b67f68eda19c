"""The states of a run, and the moves between them."""

from __future__ import annotations

import enum


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
