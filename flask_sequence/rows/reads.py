"""What is read; nothing here changes a row."""

from __future__ import annotations

import datetime
import functools
import json
import typing as t

import sqlalchemy as sa

from ..status import FINAL, Status, StepStatus
from .claims import (
    CLAIM_COLUMNS,
    HELD_COLUMNS,
    IS_KNOWN_FORMAT,
    OPTIONS_TEXT,
    Claim,
    Held,
    Row,
    held_of,
    readable_options,
)
from .dialects import by_index, clock, later, moment, readable
from .locks import lock_rows
from .models import EMPTIED, FORMAT, runs, step_runs, workers

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
    names = ("uid", "format", "due_at", "attempt", "worker_id", "pid")
    columns = (*_NUDGE_COLUMNS, *(runs.c[name] for name in names), clock().label("now"))
    return sa.select(*columns).where(runs.c.id == sa.bindparam("run"))


def newest_id(connection: sa.Connection) -> int:
    """Give the highest id of a run; 0: there is none."""
    return connection.execute(sa.select(sa.func.max(runs.c.id))).scalar() or 0


def find_active(connection: sa.Connection, sequence: str, key: str) -> int | None:
    """Give the id of the active run with a key."""
    statement = sa.select(runs.c.id).where(runs.c.sequence == sequence, runs.c.active_key == key)
    return connection.execute(statement).scalar_one_or_none()


_LISTED = (
    *("id", "sequence", "step", "status", "key", "queue"),
    *("attempt", "retries", "error", "due_at", "updated_at"),
)


def list_runs(
    connection: sa.Connection, *, status: Status | None, sequence: str | None, limit: int
) -> list[Row]:
    """Give the newest runs, without their data."""
    columns: list[t.Any] = [*(runs.c[name] for name in _LISTED), clock().label("now")]
    statement: sa.Select[t.Any] = sa.select(*columns).order_by(runs.c.id.desc())
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


class Due(t.NamedTuple):
    """What is read of a run that is due, to publish it."""

    id: int
    version: int
    sequence: str
    step: str
    options: t.Mapping[str, t.Any] | None
    due_at: datetime.datetime
    published_at: datetime.datetime | None
    now: datetime.datetime
    """The database's clock when the row was read."""


_DUE_COLUMNS: tuple[sa.ColumnElement[t.Any], ...] = (
    *(runs.c[name] for name in ("id", "version", "sequence", "step")),
    *(OPTIONS_TEXT, readable(runs.c.due_at), readable(runs.c.published_at)),
    clock().label("now"),
)


def _due(row: Row) -> Due:
    due = Due(*row)
    return due._replace(options=readable_options(t.cast("str | None", due.options)))


def due(
    connection: sa.Connection,
    *,
    queues: t.Collection[str],
    quiet: float,
    among: int,
    limit: int,
) -> list[Due]:
    """Give the runs that are due, held by nobody and not published lately.

    Those come first that were never published, then those whose nudge was sent the longest ago.

    :param queues: Their queues.
    :param quiet: Seconds since they were published last.
    :param among: Among how many of the oldest to choose, of each queue.
    :param limit: The most to give.
    """
    found: list[Due] = []
    for queue in queues:
        oldest = _oldest(sa.select(runs.c.id), queue, among).subquery()
        chosen = sa.select(*_DUE_COLUMNS).join(oldest, oldest.c.id == runs.c.id)
        chosen = chosen.where(_is_unpublished(quiet), IS_KNOWN_FORMAT)
        chosen = chosen.order_by(*_SENT_LONGEST_AGO).limit(limit)
        for row in connection.execute(chosen):
            found.append(_due(row))
    return sorted(found, key=_sent_longest_ago)[:limit]


_SENT_LONGEST_AGO = (runs.c.published_at.is_not(None), runs.c.published_at, runs.c.due_at)


def _sent_longest_ago(row: Due) -> tuple[bool, datetime.datetime, datetime.datetime]:
    return row.published_at is not None, row.published_at or row.due_at, row.due_at


def lock_due(connection: sa.Connection, run_ids: t.Collection[int], *, quiet: float) -> list[int]:
    """Lock those of some runs that are still due and not published, and locked by nobody else."""
    return _lock(connection, run_ids, _is_unpublished(quiet), runs.c.status == Status.WAITING)


def _is_unpublished(quiet: float) -> sa.ColumnElement[bool]:
    return runs.c.published_at.is_(None) | (runs.c.published_at <= later(-quiet))


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


class At(t.NamedTuple):
    """A run, and where it stands."""

    id: int
    sequence: str
    step: str
    queue: str
    options: t.Mapping[str, t.Any] | None


_AT = (runs.c.id, runs.c.sequence, runs.c.step, runs.c.queue, OPTIONS_TEXT)


def _at(row: Row) -> At:
    at = At(*row)
    return at._replace(options=readable_options(t.cast("str | None", at.options)))


def overdue(connection: sa.Connection, *, queues: t.Collection[str], seconds: float) -> list[At]:
    """Give what has been due for some seconds and nobody has claimed.

    Of each queue the oldest: those are published next, and what cannot be claimed would stay
    among them.
    """
    found: list[At] = []
    for queue in queues:
        oldest = _oldest(sa.select(*_AT).where(IS_KNOWN_FORMAT), queue, OLDEST, seconds)
        found += [_at(row) for row in connection.execute(oldest)]
    return found


def next_blocked(connection: sa.Connection, after: str) -> str | None:
    """Give the first sequence after a name that has blocked runs."""
    statement = sa.select(runs.c.sequence).where(
        runs.c.status == Status.BLOCKED, runs.c.sequence > after
    )
    statement = statement.order_by(runs.c.sequence).limit(1)
    return connection.execute(by_index(statement, runs, "ix_sequence_runs_sequence")).scalar()


def blocked(connection: sa.Connection, sequence: str, *, after: int, limit: int) -> list[At]:
    """Give the blocked runs of a sequence whose ids follow another one, in their order."""
    statement = sa.select(*_AT).where(
        runs.c.status == Status.BLOCKED, runs.c.sequence == sequence, runs.c.id > after
    )
    statement = statement.where(IS_KNOWN_FORMAT).order_by(runs.c.id).limit(limit)
    statement = by_index(statement, runs, "ix_sequence_runs_sequence")
    return [_at(row) for row in connection.execute(statement)]


def held_by(
    connection: sa.Connection, worker_id: str, *, after: int = 0, limit: int = OLDEST
) -> list[Held]:
    """Give the runs that a worker holds, in the order of their ids.

    :param after: The id that they follow.
    :param limit: The most to give.
    """
    held = _held().where(runs.c.worker_id == worker_id, runs.c.id > after)
    held = by_index(held.order_by(runs.c.id).limit(limit), runs, "ix_sequence_runs_running")
    return [held_of(row) for row in connection.execute(held)]


def orphans(connection: sa.Connection, *, after: int = 0, limit: int = OLDEST) -> list[Held]:
    """Give the runs whose worker no longer counts as alive, in the order of their ids.

    :param after: The id that they follow.
    :param limit: The most to give.
    """
    alive = (
        sa.exists()
        .where(workers.c.id == runs.c.worker_id, workers.c.seen_until > clock())
        .correlate(runs)
    )
    held = _held().where(~alive, runs.c.id > after).order_by(runs.c.id).limit(limit)
    held = by_index(held, runs, "ix_sequence_runs_status")
    return [held_of(row) for row in connection.execute(held)]


def _held() -> sa.Select[t.Any]:
    return sa.select(*HELD_COLUMNS).where(runs.c.status == Status.RUNNING, IS_KNOWN_FORMAT)


def held(
    connection: sa.Connection, run_id: int, version: int, *, worker_id: str | None, pid: int
) -> Claim | None:
    """Give the claim of a process on a run, if that is of a version."""
    holder = (runs.c.worker_id == worker_id) & (runs.c.pid == pid)
    claims = _claims(connection, (runs.c.id == run_id) & (runs.c.version == version) & holder)
    return claims[0] if claims else None


def lock(connection: sa.Connection, run_ids: t.Collection[int]) -> list[int]:
    """Lock those of some runs that nobody else has locked, and give their ids."""
    return _lock(connection, run_ids)


def _lock(
    connection: sa.Connection, run_ids: t.Collection[int], *where: sa.ColumnElement[bool]
) -> list[int]:
    # By nothing but the primary key: MariaDB locks what it passes on its way, and gaps.
    statement = sa.select(runs.c.id).where(runs.c.id.in_(run_ids), *where).order_by(runs.c.id)
    statement = by_index(statement, runs, "PRIMARY")
    return list(connection.execute(lock_rows(statement, skip_locked=True)).scalars())


def ended_before(
    connection: sa.Connection,
    seconds: float,
    *,
    after: tuple[datetime.datetime, int] | None,
    limit: int,
) -> list[tuple[datetime.datetime, int]]:
    """Give end and id of the finished and cancelled runs that ended some seconds ago, in order.

    :param after: The pair that they follow; None: from the oldest on.
    :param limit: The most to give.
    """
    statement = sa.select(readable(runs.c.finished_at), runs.c.id).where(
        runs.c.status.in_(FINAL),
        runs.c.finished_at <= moment(-seconds),
        # Not only what is not EMPTIED: those may be very many, and the index passes them over.
        runs.c.format.in_(range(EMPTIED + 1, FORMAT + 1)),
    )
    if after is not None:
        ended_at, run_id = after
        ends = runs.c.finished_at
        statement = statement.where(ends >= ended_at, (ends > ended_at) | (runs.c.id > run_id))
    statement = statement.order_by(runs.c.finished_at, runs.c.id).limit(limit)
    statement = by_index(statement, runs, "ix_sequence_runs_finished")
    return [(row.finished_at, row.id) for row in connection.execute(statement)]


def finished_steps(connection: sa.Connection, run_id: int) -> list[str]:
    """Give the steps of a run that its history tells of as finished, in their order."""
    statement = sa.select(step_runs.c.step).where(
        step_runs.c.run_id == run_id, step_runs.c.status == StepStatus.FINISHED
    )
    return list(connection.execute(statement.order_by(step_runs.c.id)).scalars())


def history_of(connection: sa.Connection, run_ids: t.Collection[int], limit: int) -> list[int]:
    """Give the ids of the rows in the history of some runs."""
    statement = sa.select(step_runs.c.id).where(step_runs.c.run_id.in_(run_ids)).limit(limit)
    return list(connection.execute(statement).scalars())


def workers_gone_for(connection: sa.Connection, seconds: float, limit: int) -> list[str]:
    """Give the ids of workers that ended without a word long ago."""
    statement = sa.select(workers.c.id).where(workers.c.seen_until <= later(-seconds))
    return list(connection.execute(statement.limit(limit)).scalars())


class Living(t.NamedTuple):
    """A worker that counts as alive."""

    id: str
    host: str
    pid: int
    place: str | None
    """Where its processes have their numbers; None: it does not tell."""
    queues: frozenset[str] | None
    """Those that it consumes; None: it does not tell."""


def living_workers(connection: sa.Connection) -> list[Living]:
    """Give the workers that count as alive; a process that stands in for one has no queues."""
    columns: list[t.Any] = [workers.c[name] for name in Living._fields]
    statement: sa.Select[t.Any] = sa.select(*columns).where(workers.c.seen_until > clock())
    return [
        living._replace(
            queues=None if living.queues is None else _names(t.cast("str", living.queues))
        )
        for living in (Living(*row) for row in connection.execute(statement))
    ]


def _names(text: str) -> frozenset[str] | None:
    try:
        return frozenset(json.loads(text))
    except (ValueError, TypeError):  # of a release to come
        return None


class Holder(t.NamedTuple):
    """The worker of a run that is performed."""

    host: str
    pid: int
    """That of its main process."""
    place: str | None
    """Where its processes have their numbers; None: it does not tell."""
    lease: float
    """For how many seconds it still counts as alive; a negative number: since when not."""


def holder(connection: sa.Connection, worker_id: str | None) -> Holder | None:
    """Give the worker with an id, also one that no longer counts as alive; None: it is gone."""
    names = ("host", "pid", "place", "seen_until")
    columns = (*(workers.c[name] for name in names), clock().label("now"))
    row = connection.execute(sa.select(*columns).where(workers.c.id == worker_id)).one_or_none()
    if row is None:
        return None
    return Holder(row.host, row.pid, row.place, (row.seen_until - row.now).total_seconds())


def hosts_of(connection: sa.Connection, worker_ids: t.Collection[str | None]) -> dict[str, str]:
    """Give the hosts of some workers, by id; of those that are known, also if they are gone."""
    statement = sa.select(workers.c.id, workers.c.host).where(workers.c.id.in_(worker_ids))
    return {row.id: row.host for row in connection.execute(statement)}


def due_queues(connection: sa.Connection, *, seconds: float, limit: int) -> list[str]:
    """Give the queues in which something has been due for some seconds and nobody has claimed it.

    :param seconds: For how long.
    :param limit: The most queues to look at.
    """
    found: list[str] = []
    queue = _next_queue(connection, "")
    while queue is not None and limit > 0:
        if connection.execute(_oldest(sa.select(runs.c.id), queue, 1, seconds)).first():
            found.append(queue)
        queue, limit = _next_queue(connection, queue), limit - 1
    return found


def _next_queue(connection: sa.Connection, after: str) -> str | None:
    statement = sa.select(runs.c.queue).where(runs.c.status == Status.WAITING, runs.c.queue > after)
    statement = by_index(statement.order_by(runs.c.queue).limit(1), runs, "ix_sequence_runs_due")
    return connection.execute(statement).scalar()


def _claims(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Claim]:
    statement = sa.select(*CLAIM_COLUMNS).where(runs.c.status == Status.RUNNING, condition)
    return [Claim(*row) for row in connection.execute(statement)]
