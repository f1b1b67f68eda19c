"""What is read; nothing here changes a row."""

from __future__ import annotations

import functools
import typing as t

import sqlalchemy as sa

from ..status import Status
from .claims import CLAIM_COLUMNS, Claim, Row
from .dialects import by_index, clock, later, moment
from .locks import lock_rows
from .models import runs, workers

OLDEST = 1000
"""How many of the runs that wait longest are searched for unknown steps, for each queue."""

_NUDGE_COLUMNS = tuple(
    runs.c[name] for name in ("id", "version", "sequence", "step", "options", "queue", "status")
)


def look(connection: sa.Connection, run_id: int) -> Row | None:
    """Read where a run stands, and ``now``, the database's clock."""
    return connection.execute(_looking(), {"run": run_id}).one_or_none()


@functools.cache
def _looking() -> sa.Select[t.Any]:
    names = ("format", "due_at", "worker_id", "pid")
    columns = (*_NUDGE_COLUMNS, *(runs.c[name] for name in names), clock().label("now"))
    return sa.select(*columns).where(runs.c.id == sa.bindparam("run"))


def find_active(connection: sa.Connection, sequence: str, key: str) -> int | None:
    """Give the id of the active run with a key."""
    statement = sa.select(runs.c.id).where(runs.c.sequence == sequence, runs.c.active_key == key)
    return connection.execute(statement).scalar_one_or_none()


def list_runs(
    connection: sa.Connection, *, status: Status | None, sequence: str | None, limit: int
) -> list[Row]:
    """Give the newest runs, without their data."""
    columns = ("id", "sequence", "step", "status", "key", "error", "updated_at")
    statement = sa.select(*(runs.c[name] for name in columns)).order_by(runs.c.id.desc())
    statement = statement.limit(limit)
    if status is not None:
        statement = statement.where(runs.c.status == status)
        statement = by_index(statement, runs, "ix_sequence_runs_status")
    if sequence is None:
        return list(connection.execute(statement))
    # For each status there is an index; for all of them it would take one more.
    statement = statement.where(runs.c.sequence == sequence)
    statement = by_index(statement, runs, "ix_sequence_runs_sequence")
    each = [statement] if status else [statement.where(runs.c.status == one) for one in Status]
    found = [row for one in each for row in connection.execute(one)]
    return sorted(found, key=lambda row: row.id, reverse=True)[:limit]


def due(
    connection: sa.Connection, *, queues: t.Collection[str], quiet: float, limit: int
) -> list[Row]:
    """Take the runs that are due, held by nobody and not published lately, the oldest first.

    :param queues: Their queues.
    :param quiet: Seconds since they were published last.
    :param limit: The most to give.
    """
    unpublished = runs.c.published_at.is_(None) | (runs.c.published_at <= later(-quiet))
    found: list[Row] = []
    for queue in queues:
        statement = sa.select(*_NUDGE_COLUMNS, runs.c.due_at).where(unpublished)
        oldest = _oldest(statement, queue, limit)
        found += connection.execute(lock_rows(oldest, skip_locked=True))
    return sorted(found, key=lambda row: row.due_at)[:limit]


def _oldest(
    statement: sa.Select[t.Any], queue: str, limit: int, overdue: float = 0.0
) -> sa.Select[t.Any]:
    # One queue at a time: across several the index gives no order, and all would be sorted.
    waiting = statement.where(
        runs.c.status == Status.WAITING, runs.c.queue == queue, runs.c.due_at <= moment(-overdue)
    )
    return by_index(waiting.order_by(runs.c.due_at).limit(limit), runs, "ix_sequence_runs_due")


def count_due(connection: sa.Connection, *, queues: t.Collection[str], limit: int) -> int:
    """Count the runs that are due and held by nobody, up to a limit."""
    found = sa.select(runs.c.id).where(
        runs.c.status == Status.WAITING, runs.c.queue.in_(queues), runs.c.due_at <= moment()
    )
    found = by_index(found.limit(limit), runs, "ix_sequence_runs_due")
    counted = sa.select(sa.func.count()).select_from(found.subquery())
    return connection.execute(counted).scalar_one()


def first_waiting(
    connection: sa.Connection, *, ignore_due: bool, without: t.Collection[tuple[int, int]]
) -> Row | None:
    """Give the waiting run that is due first.

    :param ignore_due: Whether those count that are due later.
    :param without: Ids and versions that do not count.
    """
    statement = sa.select(runs.c.id, runs.c.version).where(runs.c.status == Status.WAITING)
    for run_id, version in without:
        statement = statement.where((runs.c.id != run_id) | (runs.c.version != version))
    statement = statement.where(
        runs.c.due_at.is_not(None) if ignore_due else runs.c.due_at <= moment()
    )
    return connection.execute(statement.order_by(runs.c.due_at, runs.c.id).limit(1)).first()


def overdue_steps(
    connection: sa.Connection, *, queues: t.Collection[str], overdue: float
) -> list[tuple[str, str]]:
    """Give sequence and step of what has been due for some seconds and nobody has claimed.

    Among the oldest: those are published next, and what cannot be claimed would stay among them.
    """
    found: set[tuple[str, str]] = set()
    for queue in queues:
        oldest = _oldest(sa.select(runs.c.sequence, runs.c.step), queue, OLDEST, overdue).subquery()
        rows = connection.execute(sa.select(oldest.c.sequence, oldest.c.step).distinct())
        found.update((row.sequence, row.step) for row in rows)
    return sorted(found)


def blocked_steps(connection: sa.Connection) -> list[tuple[str, str]]:
    """Give sequence and step of what is blocked."""
    statement = sa.select(runs.c.sequence, runs.c.step).where(runs.c.status == Status.BLOCKED)
    return [(row.sequence, row.step) for row in connection.execute(statement.distinct())]


def held_by(connection: sa.Connection, worker_id: str, pid: int | None = None) -> list[Claim]:
    """Give the runs that a worker holds, or one of its processes."""
    condition = runs.c.worker_id == worker_id
    return _claims(connection, condition if pid is None else condition & (runs.c.pid == pid))


def held(
    connection: sa.Connection, run_id: int, version: int, *, worker_id: str | None, pid: int
) -> Claim | None:
    """Give the claim of a process on a run, if that is of a version."""
    holder = (runs.c.worker_id == worker_id) & (runs.c.pid == pid)
    claims = _claims(connection, (runs.c.id == run_id) & (runs.c.version == version) & holder)
    return claims[0] if claims else None


def orphans(connection: sa.Connection, limit: int) -> list[Claim]:
    """Give runs whose worker no longer counts as alive."""
    alive = (
        sa.exists()
        .where(workers.c.id == runs.c.worker_id, workers.c.seen_until > clock())
        .correlate(runs)
    )
    return _claims(connection, ~alive, limit)


def lock(connection: sa.Connection, run_ids: t.Collection[int]) -> list[int]:
    """Lock those of some runs that nobody else has locked, and give their ids."""
    statement = sa.select(runs.c.id).where(runs.c.id.in_(run_ids)).order_by(runs.c.id)
    return list(connection.execute(lock_rows(statement, skip_locked=True)).scalars())


def _claims(
    connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int | None = None
) -> list[Claim]:
    statement = sa.select(*CLAIM_COLUMNS).where(runs.c.status == Status.RUNNING, condition)
    return [Claim(**row._mapping) for row in connection.execute(statement.limit(limit))]
