"""The rows of workers, and the end of what is kept no longer."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..status import Status
from .dialects import by_index, later, moment
from .locks import lock_rows
from .models import EMPTIED, FORMAT, runs, step_runs, workers
from .statements import UPDATE_BY_ID

_FINAL = [status for status in Status if status.final]


def renew_worker(
    connection: sa.Connection, worker_id: str, *, host: str, pid: int, lease: float
) -> None:
    """Count a worker as alive for ``lease`` seconds from now."""
    renewed = sa.update(workers).where(workers.c.id == worker_id)
    if connection.execute(renewed.values(seen_until=later(lease))).rowcount == 0:
        row = {"id": worker_id, "host": host, "pid": pid, "seen_until": later(lease)}
        connection.execute(sa.insert(workers).values(**row))


def remove_worker(connection: sa.Connection, worker_id: str) -> None:
    """Count a worker as gone."""
    connection.execute(sa.delete(workers).where(workers.c.id == worker_id))


def remove_workers_gone_for(connection: sa.Connection, seconds: float) -> None:
    """Remove the rows of workers that ended without a word long ago."""
    connection.execute(sa.delete(workers).where(workers.c.seen_until <= later(-seconds)))


def ended_before(connection: sa.Connection, seconds: float, limit: int) -> list[int]:
    """Take the oldest finished and cancelled runs that ended some seconds ago."""
    statement = (
        sa.select(runs.c.id)
        .where(
            runs.c.status.in_(_FINAL),
            runs.c.finished_at <= moment(-seconds),
            # Not only what is not EMPTIED: those may be very many, and the index passes them over.
            runs.c.format.in_(range(EMPTIED + 1, FORMAT + 1)),
        )
        .order_by(runs.c.finished_at)
        .limit(limit)
    )
    statement = by_index(statement, runs, "ix_sequence_runs_finished")
    statement = lock_rows(statement, skip_locked=True, with_keys=True)
    return list(connection.execute(statement).scalars())


def delete(connection: sa.Connection, run_ids: t.Collection[int]) -> None:
    """(final) -> (nothing), with the history.

    :raises sqlalchemy.exc.IntegrityError: If a foreign key of the user's still needs one.
    """
    if connection.dialect.name == "postgresql":
        # A deferred constraint would fail the COMMIT, where no savepoint helps.
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    ended = sa.select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.status.in_(_FINAL))
    ended = by_index(ended, runs, "PRIMARY")
    # Not by a subquery: MariaDB would look it up for each row of the history.
    final = list(connection.execute(lock_rows(ended, with_keys=True)).scalars())
    connection.execute(sa.delete(step_runs).where(step_runs.c.run_id.in_(final)))
    connection.execute(sa.delete(runs).where(runs.c.id.in_(final)))


def empty(connection: sa.Connection, run_id: int) -> None:
    """Take the data and the history from a final run whose row is still needed."""
    connection.execute(sa.delete(step_runs).where(step_runs.c.run_id == run_id))
    emptied = UPDATE_BY_ID.where(runs.c.id == run_id)
    connection.execute(emptied.values(data={}, error=None, format=EMPTIED))
