"""Somebody else's table that refers to runs, and somebody else's transactions that stay open."""

from __future__ import annotations

import contextlib
import typing as t

import sqlalchemy as sa

from flask_sequence.rows.models import runs
from tests.support.stepping import Stepping


class Stranger:
    """Another part of the application, whose table ``papers`` refers to runs.

    :param stepping: The application, on PostgreSQL or MariaDB.
    :param on_delete: What becomes of a paper whose run is deleted.
    :param indexed: Whether the foreign key has an index; MariaDB makes one in any case.
    """

    def __init__(
        self, stepping: Stepping, *, on_delete: str = "SET NULL", indexed: bool = True
    ) -> None:
        self._engine = stepping.engine
        key = f"run_id bigint REFERENCES sequence_runs (id) ON DELETE {on_delete}"
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE papers (number bigint, {key})")
            if indexed:
                connection.exec_driver_sql("CREATE INDEX ix_papers_run ON papers (run_id)")

    @contextlib.contextmanager
    def _open(self, statement: sa.Executable) -> t.Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            connection.execute(statement).close()
            yield connection
            connection.rollback()

    def refer(self, run_id: int) -> None:
        """Add a paper that refers to a run, and commit."""
        with self._engine.begin() as connection:
            connection.execute(_referring(run_id))

    def referring(self, run_id: int) -> contextlib.AbstractContextManager[sa.Connection]:
        """Have an open transaction that has added a paper; rolled back at the end."""
        return self._open(_referring(run_id))

    def locking(self, run_id: int) -> contextlib.AbstractContextManager[sa.Connection]:
        """Have an open transaction that has locked the run itself."""
        return self._open(sa.select(runs.c.id).where(runs.c.id == run_id).with_for_update())

    @contextlib.contextmanager
    def locking_table(self, table: str = "sequence_runs") -> t.Iterator[None]:
        """Have a table locked against all others, as a migration does."""
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"LOCK TABLE {table}")
            else:
                connection.exec_driver_sql(f"LOCK TABLES {table} WRITE")
            try:
                yield
            finally:
                connection.invalidate()  # the lock goes with the connection


def _referring(run_id: int) -> sa.TextClause:
    return sa.text("INSERT INTO papers (number, run_id) VALUES (1, :run)").bindparams(run=run_id)
