"""How rows are locked, and how long anything waits for those that others have locked."""

from __future__ import annotations

import contextlib
import math
import typing as t

import sqlalchemy as sa

from .dialects import is_aborted, is_mysql


def lock_rows(
    statement: sa.Select[t.Any], *, skip_locked: bool = False, with_keys: bool = False
) -> sa.Select[t.Any]:
    """Lock the rows that a statement reads, as an update of them does.

    On PostgreSQL this leaves their keys alone: a row that somebody else inserts, and that refers
    to one of them, neither waits for it nor hides it. MariaDB and MySQL have no such lock.

    :param statement: What is read.
    :param skip_locked: Whether to leave out what somebody else has locked, and not to wait.
    :param with_keys: Whether the rows are about to be deleted.
    """
    return statement.with_for_update(key_share=not with_keys, skip_locked=skip_locked)


def bounded_update(statement: sa.Update, seconds: int) -> sa.Update:
    """Let an update on PostgreSQL not wait longer than this for a row that somebody has locked.

    The bound travels with the statement, holds until its transaction ends, and stands back where
    the application has set one. MariaDB and MySQL have a bound by default.

    :param statement: The update.
    :param seconds: The bound.
    """
    now = "current_setting('lock_timeout')"
    bound = f"set_config('lock_timeout', '{seconds}s', true)"
    # As a subquery it is asked once, before the first row is looked for.
    asked: sa.ColumnElement[str] = sa.literal_column(
        f"(SELECT CASE {now} WHEN '0' THEN {bound} ELSE {now} END)"
    )
    return statement.where(asked != sa.literal_column("''"))


@contextlib.contextmanager
def bounded_lock_wait(
    connection: sa.Connection, seconds: float
) -> t.Iterator[t.Callable[[float], None]]:
    """Let no statement wait for a lock of another transaction longer than this.

    A bound of the application's own holds, too, where it is shorter. MariaDB counts whole seconds,
    and MySQL no less than one.

    :param connection: A connection within a transaction; on SQLite it may be before one.
    :param seconds: The bound; 0 stands for not waiting at all.
    :return: What sets another bound.
    """
    begin, write = _BOUNDS["mysql" if is_mysql(connection) else connection.dialect.name]
    before = begin(connection, seconds)

    def bound(seconds: float) -> None:
        write(connection, [min(value, seconds) for value in before])

    try:
        yield bound
    finally:
        # Of a transaction that has failed, the rollback takes it back.
        if not connection.invalidated and not is_aborted(connection):
            write(connection, before)


def _begin_postgresql(connection: sa.Connection, seconds: float) -> list[float]:
    # 0 stands for no bound there. Reading and setting it is one way to the server.
    mine, now = f"'{_millis(seconds)}ms'", "current_setting('lock_timeout')"
    is_shorter = f"{now}::interval BETWEEN '1ms' AND {mine}::interval"
    value = f"CASE WHEN {is_shorter} THEN {now} ELSE {mine} END"
    text = f"SELECT extract(epoch FROM {now}::interval), set_config('lock_timeout', {value}, true)"
    return [float(connection.exec_driver_sql(text).one()[0]) or math.inf]


def _write_postgresql(connection: sa.Connection, values: t.Sequence[float]) -> None:
    (seconds,) = values
    millis = 0 if seconds == math.inf else _millis(seconds)
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {millis}")


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _begin_mysql(connection: sa.Connection, seconds: float) -> list[float]:
    text = "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"
    before = [float(value) for value in connection.exec_driver_sql(text).one()]
    _write_mysql(connection, [min(value, seconds) for value in before])
    return before


def _write_mysql(connection: sa.Connection, values: t.Sequence[float]) -> None:
    least = 0 if getattr(connection.dialect, "is_mariadb", False) else 1
    rows, tables = (max(least, math.ceil(value)) for value in values)
    connection.exec_driver_sql(
        f"SET SESSION innodb_lock_wait_timeout = {rows}, SESSION lock_wait_timeout = {tables}"
    )


def _begin_sqlite(connection: sa.Connection, seconds: float) -> list[float]:
    before = [_busy_timeout(connection, "PRAGMA busy_timeout") / 1000]
    _write_sqlite(connection, [min(*before, seconds)])
    return before


def _write_sqlite(connection: sa.Connection, values: t.Sequence[float]) -> None:
    (seconds,) = values
    _busy_timeout(connection, f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def _busy_timeout(connection: sa.Connection, text: str) -> int:
    # By the driver: SQLAlchemy would begin a transaction, and that may wait for others by itself.
    cursor: t.Any = connection.connection.cursor()
    try:
        cursor.execute(text)
        return int(cursor.fetchone()[0])
    finally:
        cursor.close()


_BOUNDS = {
    "postgresql": (_begin_postgresql, _write_postgresql),
    "mysql": (_begin_mysql, _write_mysql),
    "sqlite": (_begin_sqlite, _write_sqlite),
}
"""How a bound is first set, which returns what was there before, and set again."""
