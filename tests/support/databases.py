"""Databases with all tables that one test after another uses, emptied between them."""

from __future__ import annotations

import contextlib
import typing as t

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support import services

_POSTGRESQL_SHAPE = """
SELECT md5(string_agg(line, ';' ORDER BY line)) FROM (
    SELECT concat_ws(' ', relname, relkind, reloptions, attname, atttypid, attnotnull) AS line
      FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
      LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
     WHERE nspname NOT LIKE 'pg_%' AND nspname <> 'information_schema'
    UNION ALL SELECT concat_ws(' ', conname, pg_get_constraintdef(oid)) FROM pg_constraint
    UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_t%'
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting
     WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT concat(schemaname, tablename) FROM pg_stats WHERE schemaname = 'public'
) AS shape
"""
_MARIADB_SHAPE = """
SELECT md5(group_concat(line ORDER BY line SEPARATOR ';')) FROM (
    SELECT concat_ws(' ', table_name, column_name, column_type, is_nullable, collation_name) line
      FROM information_schema.columns WHERE table_schema = database()
    UNION ALL SELECT concat_ws(' ', table_name, index_name, column_name, non_unique)
      FROM information_schema.statistics WHERE table_schema = database()
    UNION ALL SELECT constraint_name FROM information_schema.table_constraints
     WHERE table_schema = database()
    UNION ALL SELECT trigger_name FROM information_schema.triggers
     WHERE trigger_schema = database()
    UNION ALL SELECT default_collation_name FROM information_schema.schemata
     WHERE schema_name = database()
) AS shape
"""


class Databases:
    """The databases of one server, each lent to one test at a time.

    To make one and to drop it takes ten times as long as to empty it.

    :param server: The server's address.
    :param make: Makes one with all tables, and returns its address.
    """

    def __init__(self, server: str, make: t.Callable[[], str]) -> None:
        self._server = server
        self._make = make
        self._free: list[str] = []
        self._shapes: dict[str, str] = {}

    def lend(self) -> str:
        """Return the address of one that nobody uses, with empty tables."""
        if self._free:
            return self._free.pop()
        url = self._make()
        with _connect(url) as connection:
            self._shapes[url] = _shape(connection)
        return url

    def take_back(self, url: str) -> None:
        """Empty one, or drop it where the test has left more in it than rows."""
        try:
            with _connect(url) as connection:
                _end_others(connection)
                if self._shapes[url] == _shape(connection):
                    _empty(connection)
                    self._free.append(url)
                    return
        except sa.exc.DBAPIError:
            pass  # the test may have dropped it
        services.drop_database(self._server, url)

    def close(self) -> None:
        """Drop all that are free."""
        for url in self._free:
            services.drop_database(self._server, url)


def _connect(url: str) -> sa.Connection:
    engine = sa.create_engine(url, poolclass=NullPool)
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _shape(connection: sa.Connection) -> str:
    if connection.dialect.name == "postgresql":
        return str(connection.exec_driver_sql(_POSTGRESQL_SHAPE.replace("%", "%%")).scalar())
    connection.exec_driver_sql("SET SESSION group_concat_max_len = 1000000")
    return str(connection.exec_driver_sql(_MARIADB_SHAPE).scalar())


def _end_others(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return
    others = connection.exec_driver_sql(
        "SELECT id FROM information_schema.processlist"
        " WHERE db = database() AND id <> connection_id()"
    )
    for (number,) in others.all():
        with contextlib.suppress(sa.exc.OperationalError):  # it has ended by itself
            connection.exec_driver_sql(f"KILL {number}")


def _empty(connection: sa.Connection) -> None:
    names = sa.inspect(connection).get_table_names()
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY")
        return
    connection.exec_driver_sql("SET SESSION foreign_key_checks = 0, lock_wait_timeout = 5")
    for name in names:
        connection.exec_driver_sql(f"TRUNCATE {name}")
