"""Very many rows at once, for the tests and benchmarks of scale."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from flask_sequence.rows.models import FORMAT, runs, step_runs
from flask_sequence.status import Status, StepStatus

AT_ONCE = 50_000
"""How many rows one statement inserts: MariaDB slows down with the length of a transaction."""


def fill(
    engine: sa.Engine,
    count: int,
    status: Status,
    *,
    sequences: int = 3,
    step: str = "s",
    history: int = 0,
    **values: str,
) -> None:
    """Insert runs, all of one status.

    :param engine: Where to.
    :param count: How many.
    :param status: Their status.
    :param sequences: How many sequences they belong to, in turn: ``Filled0``, ``Filled1``, ...
    :param step: The step that they stand at.
    :param history: How many attempts each has behind it.
    :param values: More columns, as SQL; ``i`` is the number of the row.
    """
    for first in range(1, count + 1, AT_ONCE):
        last = min(first + AT_ONCE - 1, count)
        with engine.begin() as connection:
            before = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(runs.c.id), 0)))
            _insert_runs(connection, first, last, status, sequences, step, values)
            added = sa.select(runs.c.id).where(runs.c.id > before)
            for attempt in range(1, history + 1):
                told: dict[str, t.Any] = {
                    "step": sa.literal(step),
                    "attempt": sa.literal(attempt),
                    "status": sa.literal(StepStatus.FINISHED, step_runs.c.status.type),
                    "finished_at": sa.text(now(connection)),
                }
                connection.execute(
                    sa.insert(step_runs).from_select(
                        ["run_id", *told], added.add_columns(*told.values()), include_defaults=False
                    )
                )


def now(connection: sa.Connection, seconds: str = "0") -> str:
    """Give the clock as SQL.

    :param seconds: How much later, as SQL.
    """
    if connection.dialect.name == "postgresql":
        return f"(clock_timestamp() + ({seconds}) * interval '1 second')"
    return f"(UTC_TIMESTAMP(6) + INTERVAL ({seconds}) SECOND)"


def analyze(engine: sa.Engine) -> None:
    """Let the database count anew what it plans by."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        tables = "sequence_runs, sequence_step_runs"
        word = "VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE TABLE"
        connection.exec_driver_sql(f"{word} {tables}").close()


def _insert_runs(
    connection: sa.Connection,
    first: int,
    last: int,
    status: Status,
    sequences: int,
    step: str,
    values: dict[str, str],
) -> None:
    is_postgresql = connection.dialect.name == "postgresql"
    columns = {
        "uid": "gen_random_uuid()" if is_postgresql else "REPLACE(UUID(), '-', '')",
        "sequence": f"concat('Filled', i % {sequences})",
        "step": f"'{step}'",
        "status": f"'{status}'",
        "data": "'{\"number\": 0}'",
        "format": str(FORMAT),
        "queue": "'celery'",
        "attempt": "0",
        "retries": "0",
        "crashes": "0",
        "waits": "0",
        "version": "0",
        "created_at": now(connection),
        "updated_at": now(connection),
    }
    if status.final:
        columns["finished_at"] = now(connection, f"-i % {86_400 * 7}")
    if status is Status.WAITING:
        columns["due_at"] = now(connection, "-60")
    columns |= values
    series = f"generate_series({first}, {last}) AS g(i)"
    if not is_postgresql:
        series = f"(SELECT seq AS i FROM seq_{first}_to_{last}) AS g"
    connection.execute(
        sa.text(
            f"INSERT INTO sequence_runs ({', '.join(f'{n}' for n in columns)})"
            f" SELECT {', '.join(columns.values())} FROM {series}".replace(":", "\\:")
        )
    )
