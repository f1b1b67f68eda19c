"""Every move of a run: of one that a process holds as a value, of any other as a function.

Nothing here commits.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

import sqlalchemy as sa

from ..failures import Failure
from ..status import ACTIVE, MOVES, Status, StepStatus
from .claims import CLAIM_COLUMNS, Claim, Held, Row
from .dialects import clock, moment, unindexed
from .locks import bounded_update
from .models import EMPTIED, FORMAT, runs
from .statements import (
    NOW,
    UPDATE_BY_ID,
    Change,
    History,
    In,
    move_held,
    move_held_and_commit,
    status_unindexed,
)

CLAIM_SECONDS = 2
"""How long a claim waits for somebody who has locked the run's row; on PostgreSQL."""

_HANDED_BACK: dict[str, t.Any] = {"worker_id": None, "pid": None, "step_started_at": None}


def claim(
    connection: sa.Connection,
    run_id: int,
    version: int,
    *,
    worker_id: str | None,
    pid: int,
    ignore_due: bool = False,
    expected: t.Mapping[str, str] | None = None,
) -> Claim | None:
    """waiting -> running, if the version is still the run's, and it is due.

    :param expected: Where it must stand, too: its sequence, step and queue, without options of
        its own.
    """
    returning = connection.dialect.update_returning
    statement = _claiming(
        ignore_due=ignore_due,
        returning=returning,
        bounded=connection.dialect.name == "postgresql",
        checked=tuple(expected or ()),
    )
    told: dict[str, t.Any] = {"run": run_id, "held": version, "raised": version + 1}
    told |= {f"at_{name}": value for name, value in (expected or {}).items()}
    result = connection.execute(statement, {**told, "worker": worker_id, "process": pid})
    if returning:
        row = result.one_or_none()
    else:
        found = result.rowcount == 1
        row = connection.execute(_claimed(), {"run": run_id}).one() if found else None
    return Claim(*row) if row else None


@functools.cache
def _claiming(
    *, ignore_due: bool, returning: bool, bounded: bool, checked: tuple[str, ...]
) -> sa.Update:
    statement = UPDATE_BY_ID.where(
        runs.c.id == sa.bindparam("run"),
        runs.c.version == sa.bindparam("held"),
        status_unindexed == Status.WAITING,
        runs.c.format.between(EMPTIED + 1, FORMAT),
        runs.c.due_at.is_not(None) if ignore_due else runs.c.due_at <= clock(),
    ).values(
        status=Status.RUNNING,
        version=sa.bindparam("raised"),
        attempt=runs.c.attempt + 1,
        worker_id=sa.bindparam("worker", type_=runs.c.worker_id.type),
        pid=sa.bindparam("process", type_=runs.c.pid.type),
        due_at=None,
        started_at=sa.func.coalesce(runs.c.started_at, clock()),
        step_started_at=clock(),
        updated_at=clock(),
    )
    if checked:
        met = [unindexed(runs.c[name]) == sa.bindparam(f"at_{name}") for name in checked]
        statement = statement.where(*met, runs.c.options.is_(sa.null()))
    if bounded:
        statement = bounded_update(statement, CLAIM_SECONDS)
    return statement.returning(*CLAIM_COLUMNS) if returning else statement


@functools.cache
def _claimed() -> sa.Select[t.Any]:
    # For databases whose UPDATE returns nothing.
    return sa.select(*CLAIM_COLUMNS).where(runs.c.id == sa.bindparam("run"))


# Of a run that a process holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """A change of a run that a process holds, as a value: what is to be set, and what follows.

    :param target: The status that follows.
    :param values: What else changes, by column.
    :param step: The step at which the run is afterwards; None: the same one.
    :param history: What the history is told of the attempt that ends with it; None: the attempt
        goes on, or does not count.
    """

    target: Status
    values: t.Mapping[str, t.Any]
    step: str | None = None
    history: History | None = None

    def __post_init__(self) -> None:
        assert self.target in MOVES[Status.RUNNING]

    @property
    def ends_step(self) -> bool:
        """Whether the step is finished with it, so that it is the last commit of the attempt."""
        return self.history is not None and self.history.status is StepStatus.FINISHED

    @property
    def delay(self) -> float:
        """Seconds until the run is due, where it waits then."""
        due_at = self.values.get("due_at")
        return due_at.seconds if isinstance(due_at, In) else 0.0

    def change(self, data: str | None) -> Change:
        """Return it as statements say it; once made, it is kept.

        :param data: The encoded data, or None if they did not change.
        """
        return self._change if data is None else self._change_with_data

    @functools.cached_property
    def _change(self) -> Change:
        return Change(self.target, self._all_values, self.history)

    @functools.cached_property
    def _change_with_data(self) -> Change:
        values = {**PROGRESS, **self._all_values, "data": ""}
        return Change(self.target, values, self.history)

    @property
    def _all_values(self) -> t.Mapping[str, t.Any]:
        return self.values if self.step is None else {**self.values, "step": self.step}

    def went_through(self, claim: Claim, row: Row) -> bool:
        """Tell by a row whether it is this move that has followed on a claim.

        A run that somebody took over, or cancelled, is at another step or has another status.

        :param claim: The claim for which it was made.
        :param row: Where the run is now.
        """
        holder = (claim.worker_id, claim.pid) if self.target is Status.RUNNING else (None, None)
        expected = (claim.version + 1, self.target, self.step or claim.step, *holder)
        return expected == (row.version, row.status, row.step, row.worker_id, row.pid)


PROGRESS: dict[str, t.Any] = {"crashes": 0, "waits": 0}
"""What begins to count again with each progress."""

MOST_KEPT = 1024
"""How many of the moves of steps that have succeeded are kept: those of a process are few."""

CHECKPOINT = Move(target=Status.RUNNING, values={})
"""running -> running, in the middle of a step."""


@functools.lru_cache(maxsize=MOST_KEPT)
def advance(step: str, *, queue: str, label: str) -> Move:
    """running -> waiting for the next step.

    :param step: Its name.
    :param queue: Its queue.
    :param label: The host and process, for the history.
    """
    again = {"attempt": 0, "queue": queue, "due_at": NOW, "published_at": NOW}
    values = {**_HANDED_BACK, "retries": 0, **PROGRESS, "error": None, **again}
    return Move(target=Status.WAITING, step=step, values=values, history=_finished(label))


@functools.lru_cache(maxsize=MOST_KEPT)
def hold(step: str, *, label: str) -> Move:
    """running -> running at the next step, which the same process goes on with.

    :param step: Its name.
    :param label: The host and process, for the history.
    """
    values = {"retries": 0, **PROGRESS, "error": None, "attempt": 1, "step_started_at": NOW}
    return Move(target=Status.RUNNING, step=step, values=values, history=_finished(label))


@functools.lru_cache(maxsize=MOST_KEPT)
def finish(*, label: str) -> Move:
    """running -> finished."""
    values = {**_HANDED_BACK, "active_key": None, "error": None, "finished_at": NOW}
    return Move(target=Status.FINISHED, values=values, history=_finished(label))


def reschedule(claim: Claim, failure: Failure, *, delay: float, label: str) -> Move:
    """running -> waiting for another try at the same step, after it failed.

    :param delay: Seconds until then.
    """
    again = {"retries": claim.retries + 1, "error": failure.error}
    values = {**_HANDED_BACK, **_due(delay), **again}
    history = History(StepStatus.RETRY, label, failure.error, failure.traceback)
    return Move(target=Status.WAITING, values=values, history=history)


def hand_back(claim: Claim, *, delay: float, error: str, waits: int = 0) -> Move:
    """running -> waiting for another try at the same step, through no fault of the step.

    :param delay: Seconds until then.
    :param waits: By how much the times count on that the step had to wait for the database.
    """
    values = {**_HANDED_BACK, **_due(delay), "error": error, "waits": claim.waits + waits}
    return Move(target=Status.WAITING, values=values)


def fail(failure: Failure, *, label: str) -> Move:
    """running -> failed."""
    history = History(StepStatus.FAILED, label, failure.error, failure.traceback)
    values = {**_HANDED_BACK, "error": failure.error}
    return Move(target=Status.FAILED, values=values, history=history)


def crash(claim: Claim | Held, *, delay: float | None, error: str, label: str) -> Move:
    """running -> waiting for another try, or running -> failed, after its process ended.

    :param delay: Seconds until the next try; None: it has crashed too often.
    """
    due = {} if delay is None else _due(delay)
    return Move(
        target=Status.FAILED if delay is None else Status.WAITING,
        values={**_HANDED_BACK, **due, "crashes": claim.crashes + 1, "error": error},
        history=History(StepStatus.CRASHED, label, error),
    )


def make(
    connection: sa.Connection, claim: Claim | Held, move: Move, data: str | None = None
) -> bool:
    """Make a move.

    :param connection: Where to.
    :param claim: The claim, of the current version.
    :param move: The move.
    :param data: The encoded data, or None if they did not change.
    :return: Whether the version was still the run's.
    """
    return move_held(connection, claim, move.change(data), data)


def make_and_commit(
    connection: sa.Connection, claim: Claim, move: Move, data: str | None = None
) -> bool:
    """Make a move and commit its transaction, in one message: see ``can_commit_along``.

    :return: Whether the version was still the run's; else nothing is committed.
    """
    return move_held_and_commit(connection, claim, move.change(data), data)


def _finished(label: str) -> History:
    return History(StepStatus.FINISHED, label)


def _due(delay: float) -> dict[str, t.Any]:
    return {"due_at": In(delay), "published_at": NOW}


# Of any run


def revive(connection: sa.Connection, run_id: int, version: int, *, is_published: bool) -> bool:
    """failed -> waiting, at the failed step.

    :param is_published: Whether the caller publishes it.
    """
    statement = _moving(run_id, version, Status.FAILED, Status.WAITING).values(
        retries=0, **PROGRESS, due_at=clock(), published_at=clock() if is_published else None
    )
    return _moved(connection, statement)


def hasten(connection: sa.Connection, run_id: int, version: int, *, is_published: bool) -> bool:
    """waiting -> waiting, due now.

    :param is_published: Whether the caller publishes it.
    """
    statement = UPDATE_BY_ID.where(
        runs.c.id == run_id, runs.c.version == version, status_unindexed == Status.WAITING
    )
    published_at = clock() if is_published else None
    values = {"due_at": clock(), "published_at": published_at, "updated_at": clock()}
    return _moved(connection, statement.values(**values, version=version + 1))


def cancel(connection: sa.Connection, run_id: int) -> bool:
    """(any that is not final) -> cancelled."""
    statement = UPDATE_BY_ID.where(runs.c.id == run_id, status_unindexed.in_(ACTIVE)).values(
        **_HANDED_BACK,
        status=Status.CANCELLED,
        version=runs.c.version + 1,
        active_key=None,
        due_at=None,
        updated_at=clock(),
        finished_at=clock(),
    )
    return _moved(connection, statement)


def redirect(connection: sa.Connection, run_id: int, version: int, *, queue: str) -> bool:
    """waiting -> waiting in another queue, for a nudge that goes where the step is performed."""
    statement = UPDATE_BY_ID.where(
        runs.c.id == run_id, runs.c.version == version, status_unindexed == Status.WAITING
    ).values(queue=queue, version=version + 1, published_at=clock(), updated_at=clock())
    return _moved(connection, statement)


def follow(
    connection: sa.Connection, run_ids: t.Collection[int], *, queue: str, following: str
) -> int:
    """waiting -> waiting in another queue, for runs that nobody takes where they are.

    :param queue: Where they must still wait.
    :param following: The queue of their step.
    :return: How many.
    """
    still = (runs.c.queue == queue) & (runs.c.due_at <= clock())
    statement = UPDATE_BY_ID.where(
        runs.c.id.in_(run_ids), status_unindexed == Status.WAITING, still
    )
    values = {"queue": following, "version": runs.c.version + 1, "published_at": None}
    return connection.execute(statement.values(**values, updated_at=clock())).rowcount


def block(
    connection: sa.Connection,
    run_ids: t.Collection[int],
    *,
    step: str,
    overdue: float,
    error: str,
) -> int:
    """waiting -> blocked, for runs that stay due at a step that is not known.

    :param step: Where they must still stand.
    :param overdue: Seconds for which they must have been due.
    :return: How many.
    """
    still = (runs.c.step == step) & (runs.c.due_at <= moment(-overdue))
    values = {"error": error, "due_at": None}
    return _move_many(connection, run_ids, Status.WAITING, Status.BLOCKED, still, **values)


def unblock(connection: sa.Connection, run_ids: t.Collection[int]) -> int:
    """blocked -> waiting, for runs at a step that is known again.

    :return: How many.
    """
    again: dict[str, t.Any] = {"error": None, "due_at": clock(), "published_at": None}
    return _move_many(connection, run_ids, Status.BLOCKED, Status.WAITING, sa.true(), **again)


def _moving(run_id: int, version: int, source: Status, target: Status) -> sa.Update:
    assert target in MOVES[source]
    return UPDATE_BY_ID.where(
        runs.c.id == run_id, runs.c.version == version, status_unindexed == source
    ).values(status=target, version=version + 1, updated_at=clock())


def _move_many(
    connection: sa.Connection,
    run_ids: t.Collection[int],
    source: Status,
    target: Status,
    where: sa.ColumnElement[bool],
    **values: t.Any,
) -> int:
    assert target in MOVES[source]
    moved = UPDATE_BY_ID.where(runs.c.id.in_(run_ids), status_unindexed == source, where).values(
        status=target, version=runs.c.version + 1, updated_at=clock(), **values
    )
    return connection.execute(moved).rowcount


def _moved(connection: sa.Connection, statement: sa.Update) -> bool:
    return connection.execute(statement).rowcount == 1


def note_trouble(connection: sa.Connection, run_id: int, version: int, error: str) -> None:
    """Note why a run that waits was not claimed."""
    waits = status_unindexed == Status.WAITING
    statement = UPDATE_BY_ID.where(runs.c.id == run_id, runs.c.version == version, waits)
    connection.execute(statement.values(error=error))


def mark_published(connection: sa.Connection, run_ids: t.Collection[int]) -> None:
    """Note that nudges for these runs are about to be sent."""
    connection.execute(
        UPDATE_BY_ID.where(runs.c.id.in_(run_ids), status_unindexed == Status.WAITING).values(
            published_at=clock()
        )
    )
