"""The rows of workers, and the end of what is kept no longer."""

from __future__ import annotations

import json
import typing as t

import sqlalchemy as sa

from ..status import FINAL
from .dialects import by_index, later
from .locks import lock_rows
from .models import EMPTIED, runs, step_runs, workers
from .statements import UPDATE_BY_ID


def renew_worker(
    connection: sa.Connection,
    worker_id: str,
    *,
    host: str,
    pid: int,
    lease: float,
    queues: t.Collection[str] | None = None,
    place: str | None = None,
) -> None:
    """Count a worker as alive for ``lease`` seconds from now.

    :param queues: The names of those that it consumes; None: it does not tell.
    :param place: Where its processes have their numbers; None: it does not tell.
    """
    told = None if queues is None else json.dumps(sorted(queues))
    now: dict[str, t.Any] = {"seen_until": later(lease), "queues": told}
    renewed = sa.update(workers).where(workers.c.id == worker_id)
    if connection.execute(renewed.values(now)).rowcount == 0:
        row = {"id": worker_id, "host": host, "pid": pid, "place": place, **now}
        connection.execute(sa.insert(workers).values(**row))


def remove_worker(connection: sa.Connection, worker_id: str) -> None:
    """Count a worker as gone."""
    connection.execute(sa.delete(workers).where(workers.c.id == worker_id))


def remove_gone(connection: sa.Connection, worker_ids: t.Collection[str], seconds: float) -> None:
    """Remove the rows of workers that are still silent."""
    silent = workers.c.seen_until <= later(-seconds)
    connection.execute(sa.delete(workers).where(workers.c.id.in_(worker_ids), silent))


def delete_history(connection: sa.Connection, step_run_ids: t.Collection[int]) -> None:
    """Delete rows of the history."""
    connection.execute(sa.delete(step_runs).where(step_runs.c.id.in_(step_run_ids)))


def delete(connection: sa.Connection, run_ids: t.Collection[int]) -> int:
    """(final) -> (nothing), with the history; for those of some runs that nobody has locked.

    :return: How many.
    :raises sqlalchemy.exc.IntegrityError: If a foreign key of the user's still needs one.
    """
    if connection.dialect.name == "postgresql":
        # A deferred constraint would fail the COMMIT, where no savepoint helps.
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    # Each row by its primary key, and a run before its history: else MariaDB finds deadlocks.
    ended = sa.select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.status.in_(FINAL))
    ended = by_index(ended, runs, "PRIMARY")
    final = list(connection.execute(lock_rows(ended, skip_locked=True, with_keys=True)).scalars())
    if not final:
        return 0
    told = sa.select(step_runs.c.id).where(step_runs.c.run_id.in_(final))
    delete_history(connection, list(connection.execute(told).scalars()))
    return connection.execute(sa.delete(runs).where(runs.c.id.in_(final))).rowcount


def empty(connection: sa.Connection, run_id: int) -> None:
    """Take the data and the history from a final run whose row is still needed."""
    emptied = UPDATE_BY_ID.where(runs.c.id == run_id, runs.c.status.in_(FINAL))
    connection.execute(emptied.values(data={}, error=None, format=EMPTIED))
    told = sa.select(step_runs.c.id).where(step_runs.c.run_id == run_id)
    delete_history(connection, list(connection.execute(told).scalars()))
