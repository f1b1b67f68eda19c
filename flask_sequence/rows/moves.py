"""Every move of a run, one function each. Nothing here commits."""

from __future__ import annotations

import functools
import typing as t

import sqlalchemy as sa

from ..status import ACTIVE, MOVES, Status, StepStatus
from .claims import CLAIM_COLUMNS, Claim, Held
from .dialects import clock, moment, unindexed
from .models import EMPTIED, FORMAT, runs
from .statements import NOW, UPDATE_BY_ID, History, In, move_held, status_text

_HANDED_BACK: dict[str, t.Any] = {"worker_id": None, "pid": None, "step_started_at": None}


def insert_many(
    connection: sa.Connection,
    rows: t.Sequence[t.Mapping[str, t.Any]],
    *,
    same: t.Mapping[str, t.Any],
    due_at: t.Any,
) -> list[int]:
    """(nothing) -> waiting, for many runs.

    :param rows: Of each, ``uid`` and ``data``, encoded.
    :param same: The other columns that have no default; of all.
    :param due_at: When they are due; None: at once.
    :return: Their ids, in the order of ``rows``.
    """
    due_at = clock() if due_at is None else due_at
    if connection.dialect.name == "postgresql":
        statement = _insert_unnested({**_DEFAULTS, **same}, due_at)
        columns = {name: [str(row[name]) for row in rows] for name in ("uid", "data")}
        # As their sequence counts up in the order of the rows, so do they.
        return sorted(connection.execute(statement, columns).scalars())
    statement = sa.insert(runs).values(due_at=due_at)
    values = [{**same, **row} for row in rows]
    if connection.dialect.insert_executemany_returning:
        statement = statement.returning(runs.c.id, sort_by_parameter_order=True)
        return list(connection.execute(statement, values).scalars())
    inserted = (connection.execute(statement, row).inserted_primary_key for row in values)
    return [key[0] for key in inserted if key is not None]


_DEFAULTS: dict[str, t.Any] = {
    column.name: t.cast(t.Any, column.default).arg
    for column in runs.c
    if column.default is not None and column.default.is_scalar
}


def _insert_unnested(same: t.Mapping[str, t.Any], due_at: t.Any) -> sa.Insert:
    # Two arrays: with a parameter for each value, the driver takes longer than the server.
    texts = sa.ARRAY(sa.Text)
    arrays = sa.func.unnest(sa.bindparam("uid", type_=texts), sa.bindparam("data", type_=texts))
    row = arrays.table_valued("uid", "data", with_ordinality="number").render_derived()
    values = {
        **{name: sa.cast(row.c[name], runs.c[name].type) for name in ("uid", "data")},
        "due_at": due_at,
        **{name: clock() for name in ("published_at", "created_at", "updated_at")},
        **{name: sa.literal(value, runs.c[name].type) for name, value in same.items()},
    }
    chosen = sa.select(*values.values()).select_from(row).order_by(row.c.number)
    insert = sa.insert(runs).from_select(list(values), chosen, include_defaults=False)
    return insert.returning(runs.c.id)


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
    statement = _claiming(ignore_due=ignore_due, returning=returning, checked=tuple(expected or ()))
    told: dict[str, t.Any] = {"run": run_id, "held": version, "raised": version + 1}
    told |= {f"at_{name}": value for name, value in (expected or {}).items()}
    result = connection.execute(statement, {**told, "worker": worker_id, "process": pid})
    if returning:
        row = result.one_or_none()
    else:
        found = result.rowcount == 1
        row = connection.execute(_claimed(), {"run": run_id}).one() if found else None
    return Claim(**row._mapping) if row else None


@functools.cache
def _claiming(*, ignore_due: bool, returning: bool, checked: tuple[str, ...]) -> sa.Update:
    statement = UPDATE_BY_ID.where(
        runs.c.id == sa.bindparam("run"),
        runs.c.version == sa.bindparam("held"),
        status_text == Status.WAITING,
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
    return statement.returning(*CLAIM_COLUMNS) if returning else statement


@functools.cache
def _claimed() -> sa.Select[t.Any]:
    # For databases whose UPDATE returns nothing.
    return sa.select(*CLAIM_COLUMNS).where(runs.c.id == sa.bindparam("run"))


def checkpoint(connection: sa.Connection, claim: Claim, data: str | None) -> bool:
    """running -> running, in the middle of a step.

    :param data: The encoded data, or None if they did not change.
    """
    progress = {} if data is None else {"data": data, "crashes": 0}
    return move_held(connection, claim, Status.RUNNING, progress)


def advance(
    connection: sa.Connection,
    claim: Claim,
    data: str | None,
    *,
    step: str,
    queue: str,
    label: str,
    hold: bool = False,
) -> bool:
    """running -> waiting for the next step, or running -> running at it within a burst.

    :param data: The encoded data, or None if they did not change.
    :param step: The name of the next step.
    :param queue: Its queue.
    :param label: The host and process, for the history.
    :param hold: Whether the process goes on with the next step itself.
    """
    values = {**_data(data), "step": step, "retries": 0, "crashes": 0, "error": None}
    if hold:
        target, more = Status.RUNNING, {"attempt": 1, "step_started_at": NOW}
    else:
        again = {"attempt": 0, "queue": queue, "due_at": NOW, "published_at": NOW}
        target, more = Status.WAITING, {**_HANDED_BACK, **again}
    history = History(StepStatus.FINISHED, label)
    return move_held(connection, claim, target, {**values, **more}, history)


def finish(connection: sa.Connection, claim: Claim, data: str | None, *, label: str) -> bool:
    """running -> finished."""
    ended = {"active_key": None, "error": None, "finished_at": NOW}
    values = {**_data(data), **_HANDED_BACK, **ended}
    history = History(StepStatus.FINISHED, label)
    return move_held(connection, claim, Status.FINISHED, values, history)


def reschedule(
    connection: sa.Connection,
    claim: Claim,
    *,
    delay: float,
    error: str,
    traceback: str | None,
    label: str,
) -> bool:
    """running -> waiting for another try at the same step, after it failed.

    :param delay: Seconds until then.
    """
    values = {**_HANDED_BACK, **_due(delay), "retries": claim.retries + 1, "error": error}
    history = History(StepStatus.RETRY, label, error, traceback)
    return move_held(connection, claim, Status.WAITING, values, history)


def hand_back(connection: sa.Connection, claim: Claim, *, delay: float, error: str) -> bool:
    """running -> waiting for another try at the same step, through no fault of the step.

    :param delay: Seconds until then.
    """
    values = {**_HANDED_BACK, **_due(delay), "error": error}
    return move_held(connection, claim, Status.WAITING, values)


def fail(
    connection: sa.Connection, claim: Claim, *, error: str, traceback: str | None, label: str
) -> bool:
    """running -> failed."""
    history = History(StepStatus.FAILED, label, error, traceback)
    return move_held(connection, claim, Status.FAILED, {**_HANDED_BACK, "error": error}, history)


def crash(
    connection: sa.Connection, claim: Claim | Held, *, delay: float | None, error: str, label: str
) -> bool:
    """running -> waiting for another try, or running -> failed, after its process ended.

    :param delay: Seconds until the next try; None: it has crashed too often.
    """
    target = Status.FAILED if delay is None else Status.WAITING
    due = {} if delay is None else _due(delay)
    values = {**_HANDED_BACK, **due, "crashes": claim.crashes + 1, "error": error}
    history = History(StepStatus.CRASHED, label, error)
    return move_held(connection, claim, target, values, history)


def revive(connection: sa.Connection, run_id: int, version: int) -> bool:
    """failed -> waiting, at the failed step."""
    statement = _moving(run_id, version, Status.FAILED, Status.WAITING).values(
        retries=0, crashes=0, due_at=clock(), published_at=clock()
    )
    return _moved(connection, statement)


def cancel(connection: sa.Connection, run_id: int) -> bool:
    """(any that is not final) -> cancelled."""
    statement = UPDATE_BY_ID.where(runs.c.id == run_id, status_text.in_(ACTIVE)).values(
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
        runs.c.id == run_id, runs.c.version == version, status_text == Status.WAITING
    ).values(queue=queue, version=version + 1, published_at=clock(), updated_at=clock())
    return _moved(connection, statement)


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
        runs.c.id == run_id, runs.c.version == version, status_text == source
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
    moved = UPDATE_BY_ID.where(runs.c.id.in_(run_ids), status_text == source, where).values(
        status=target, version=runs.c.version + 1, updated_at=clock(), **values
    )
    return connection.execute(moved).rowcount


def _data(data: str | None) -> dict[str, t.Any]:
    return {} if data is None else {"data": data}


def _due(delay: float) -> dict[str, t.Any]:
    return {"due_at": In(delay), "published_at": NOW}


def _moved(connection: sa.Connection, statement: sa.Update) -> bool:
    return connection.execute(statement).rowcount == 1


def mark_published(connection: sa.Connection, run_ids: t.Collection[int]) -> None:
    """Note that nudges for these runs are about to be sent."""
    connection.execute(
        UPDATE_BY_ID.where(runs.c.id.in_(run_ids), status_text == Status.WAITING).values(
            published_at=clock()
        )
    )
