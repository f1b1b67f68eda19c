"""What differs between databases: the clock, short connections, errors that deserve a try."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import typing as t

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from ..errors import SetupError
from .columns import MYSQL, UTCDateTime, time_type
from .driver_errors import is_missing_savepoint

_IN_ERROR = 3
"""PostgreSQL's status of a transaction in which a statement has failed."""
_GUARD = "flask_sequence_step"


class _Later(sa.sql.functions.FunctionElement[datetime.datetime]):
    inherit_cache = True
    type: UTCDateTime = time_type()

    def __init__(self, seconds: float | sa.BindParameter[int]) -> None:
        if not isinstance(seconds, sa.BindParameter):
            seconds = sa.literal(round(seconds * 1_000_000), sa.BigInteger)
        super().__init__(seconds)


def later(seconds: float | sa.BindParameter[int] = 0.0) -> sa.ColumnElement[datetime.datetime]:
    """Give the database's clock at the statement, plus some seconds.

    PostgreSQL's ``now()`` is the start of the transaction, so a lease could not be counted by it.

    :param seconds: How much later; a negative number is earlier. A parameter of a statement
        gives it in microseconds.
    """
    return _Later(seconds)


class _Clock(sa.sql.functions.FunctionElement[datetime.datetime]):
    inherit_cache = True
    type: UTCDateTime = time_type()


class _Moment(_Later):
    inherit_cache = True


def moment(seconds: float = 0.0) -> sa.ColumnElement[datetime.datetime]:
    """Give the same as ``later``, for a comparison that an index is to serve.

    PostgreSQL looks up no index by a function that may change from row to row.

    :param seconds: How much later; a negative number is earlier.
    """
    return _Moment(seconds)


def clock() -> sa.ColumnElement[datetime.datetime]:
    """Give the database's clock at the statement, in UTC with microseconds.

    SQLite's own clock counts milliseconds.
    """
    return _Clock()


@compiles(_Clock, "postgresql")
def _clock_postgresql(element: _Clock, compiler: t.Any, **kw: t.Any) -> str:
    return "clock_timestamp()"


@compiles(_Clock, "mysql")
@compiles(_Clock, "mariadb")
def _clock_mysql(element: _Clock, compiler: t.Any, **kw: t.Any) -> str:
    return "UTC_TIMESTAMP(6)"


@compiles(_Clock, "sqlite")
def _clock_sqlite(element: _Clock, compiler: t.Any, **kw: t.Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(_Later, "postgresql")
def _later_postgresql(element: _Later, compiler: t.Any, **kw: t.Any) -> str:
    micros = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + {micros} * interval '1 microsecond')"


@compiles(_Moment, "postgresql")
def _moment_postgresql(element: _Moment, compiler: t.Any, **kw: t.Any) -> str:
    return f"(SELECT {_later_postgresql(element, compiler, **kw)})"


@compiles(_Later, "mysql")
@compiles(_Later, "mariadb")
def _later_mysql(element: _Later, compiler: t.Any, **kw: t.Any) -> str:
    micros = compiler.process(element.clauses, **kw)
    return f"(UTC_TIMESTAMP(6) + INTERVAL {micros} MICROSECOND)"


@compiles(_Later, "sqlite")
def _later_sqlite(element: _Later, compiler: t.Any, **kw: t.Any) -> str:
    micros = compiler.process(element.clauses, **kw)
    shift = f"printf('%+.3f seconds', {micros} / 1000000.0)"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {shift})"


class _Readable(sa.sql.functions.FunctionElement[t.Any]):
    inherit_cache = True
    type: UTCDateTime = time_type()


def readable(column: sa.ColumnElement[t.Any]) -> sa.ColumnElement[t.Any]:
    """Read a time so that Python can have it, whatever stands there.

    PostgreSQL has times before the year 1, after 9999, and infinite ones, MariaDB one of zeros. One
    row with such a time must not keep the keeper from all others.

    :param column: The column.
    """
    return _Readable(column).label(column.name)


@compiles(_Readable)
def _readable(element: _Readable, compiler: t.Any, **kw: t.Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_Readable, "postgresql")
def _readable_postgresql(element: _Readable, compiler: t.Any, **kw: t.Any) -> str:
    column = compiler.process(element.clauses, **kw)
    first, last = "timestamptz '0001-01-03 00:00Z'", "timestamptz '9999-12-29 00:00Z'"
    bounds = f"WHEN {column} < {first} THEN {first} WHEN {column} > {last} THEN {last}"
    return f"CASE {bounds} ELSE {column} END"  # not LEAST(), which makes a time of no time


@compiles(_Readable, "mysql")
@compiles(_Readable, "mariadb")
def _readable_mysql(element: _Readable, compiler: t.Any, **kw: t.Any) -> str:
    column = compiler.process(element.clauses, **kw)
    first = "TIMESTAMP'0001-01-03 00:00:00'"
    return f"CASE WHEN {column} < {first} THEN {first} ELSE {column} END"


def by_index(statement: sa.Select[t.Any], table: sa.Table, index: str) -> sa.Select[t.Any]:
    """Let MariaDB and MySQL take this index: they would rather sort, or merge two others.

    :param statement: What is selected.
    :param table: The table of the index.
    :param index: Its name.
    """
    for dialect in MYSQL:
        statement = statement.with_hint(table, f"FORCE INDEX ({index})", dialect)
    return statement


def by_primary_key(statement: sa.Update) -> sa.Update:
    """Let MariaDB and MySQL find rows by their primary key.

    By another index, which they may prefer, they lock the gaps in it, too, until the commit; and
    whoever changes a row beside it waits for that.

    :param statement: What is updated.
    """
    for dialect in MYSQL:
        statement = statement.with_hint("FORCE INDEX (PRIMARY)", dialect_name=dialect)
    return statement


class _Unindexed(sa.sql.functions.FunctionElement[t.Any]):
    inherit_cache = True


@compiles(_Unindexed)
def _unindexed(element: _Unindexed, compiler: t.Any, **kw: t.Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_Unindexed, "postgresql")
def _unindexed_postgresql(element: _Unindexed, compiler: t.Any, **kw: t.Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} || '')"


def unindexed(column: sa.ColumnElement[t.Any]) -> sa.ColumnElement[t.Any]:
    """Compare a text without the indexes in which it stands, so that the primary key is used.

    PostgreSQL, which takes no hints, finds a small index as good in a table of which it knows
    nothing yet, and reads all of it when it has grown.

    :param column: The column.
    """
    plain = _Unindexed(column)
    plain.type = column.type
    return plain


def is_mysql(connection: sa.Connection) -> bool:
    """Tell whether the connection leads to MariaDB or MySQL."""
    return connection.dialect.name in MYSQL


def begin_immediate(connection: sa.Connection) -> None:
    """Take SQLite's write lock now, waiting for it: a read that turns into a write may fail."""
    if connection.dialect.name == "sqlite" and not _in_driver_transaction(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_driver_transaction(connection: sa.Connection) -> bool:
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", False))


def refuse_autocommit(connection: sa.Connection) -> None:
    """Refuse a connection on which the driver commits each statement, however that was set.

    It asks the driver, and sends nothing.

    :param connection: A connection within a transaction.
    :raises SetupError: If it does.
    """
    if _commits_by_itself(connection):
        connection.invalidate()  # a step may have changed this one alone
        raise SetupError(
            "The connections of the runs commit each statement by themselves (AUTOCOMMIT), so a"
            " step and its effects cannot be one commit: remove isolation_level or autocommit from"
            " SQLALCHEMY_ENGINE_OPTIONS, SQLALCHEMY_BINDS, SQLAlchemy(engine_options=...) or the"
            " URL of the database, or use it on a separate bind only."
        )


def _commits_by_itself(connection: sa.Connection) -> bool:
    driver: t.Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        # An application may have switched the driver's transactions off to begin them by itself.
        plain = driver.isolation_level is None or getattr(driver, "autocommit", None) is True
        return plain and not driver.in_transaction
    if hasattr(driver, "get_autocommit"):  # PyMySQL, mysqlclient
        return bool(driver.get_autocommit())
    return getattr(driver, "autocommit", False) is True


def commit_each(connection: sa.Connection) -> None:
    """Let each statement be committed by itself.

    :param connection: A connection on which we have begun no transaction.
    """
    driver: t.Any = connection.connection.dbapi_connection
    driver.rollback()  # what listens to its pool may have begun one
    connection.execution_options(isolation_level="AUTOCOMMIT")


@contextlib.contextmanager
def short_transaction(bind: sa.Engine | sa.Connection) -> t.Iterator[sa.Connection]:
    """Run one short transaction, committed at the end, rolled back on an error.

    :param bind: An engine; or a connection, where a test has wrapped itself in a transaction.
    """
    if isinstance(bind, sa.Connection):
        with bind.begin_nested():
            yield bind
    else:
        with bind.connect() as connection, connection.begin():
            refuse_autocommit(connection)
            begin_immediate(connection)
            yield connection


@contextlib.contextmanager
def single_statements(bind: sa.Engine | sa.Connection) -> t.Iterator[sa.Connection]:
    """Run statements that need no transaction: each sees, and commits, for itself.

    A transaction costs two round trips more; but on MariaDB to do without would cost four.

    :param bind: An engine; or a connection, where a test has wrapped itself in a transaction.
    """
    if isinstance(bind, sa.Connection):
        with bind.begin_nested():
            yield bind
    else:
        with bind.connect() as connection, good_connection(connection):
            if connection.dialect.name != "sqlite":
                refuse_autocommit(connection)
            if not is_mysql(connection):
                commit_each(connection)
            with connection.begin():
                yield connection


@contextlib.contextmanager
def good_connection(connection: sa.Connection) -> t.Iterator[None]:
    """Keep a connection from its pool where what it answers cannot be read.

    A step may have left it so, with a ``SET`` of its session.

    :param connection: The connection.
    """
    try:
        yield
    except sa.exc.OperationalError:
        raise
    except Exception:
        connection.invalidate()
        raise


def set_guard(connection: sa.Connection) -> None:
    """Begin to watch for writes that MariaDB drops by itself: after a deadlock, or DDL."""
    if is_mysql(connection):
        connection.exec_driver_sql(f"SAVEPOINT {_GUARD}")


def release_guard(connection: sa.Connection) -> bool:
    """Tell whether all that was written since ``set_guard`` still stands."""
    if is_mysql(connection):
        try:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_GUARD}")
        except sa.exc.DBAPIError as error:
            if is_missing_savepoint(error):
                return False
            raise
    return True


def is_memory(engine: sa.Engine) -> bool:
    """Tell whether a database lives in this process only."""
    name = engine.url.database or ""
    in_memory = name in {"", ":memory:"} or "mode=memory" in str(engine.url)
    return engine.dialect.name == "sqlite" and in_memory


def blocks_greenlets(engine: sa.Engine) -> bool:
    """Tell whether a driver waits for its server without letting other greenlets go on."""
    if engine.dialect.driver == "psycopg2":
        extensions: t.Any = getattr(engine.dialect.dbapi, "extensions", None)
        return extensions.get_wait_callback() is None  # psycogreen sets one
    return engine.dialect.driver == "mysqldb"


def is_missing_file(engine: sa.Engine) -> bool:
    """Tell whether a database is a file that is not there, which to connect would create."""
    name = engine.url.database or ""
    return engine.dialect.name == "sqlite" and not pathlib.Path(name.removeprefix("file:")).exists()


def most_connections(engine: sa.Engine) -> int | None:
    """Tell how many connections the pool of an engine gives out at once; None: without a limit."""
    pool = engine.pool
    if not isinstance(pool, sa.pool.QueuePool):
        return None
    size, overflow = pool.size(), pool._max_overflow
    return None if size == 0 or overflow < 0 else size + overflow


def is_aborted(connection: sa.Connection) -> bool:
    """Tell whether PostgreSQL will answer COMMIT with a silent ROLLBACK."""
    driver = connection.connection.dbapi_connection
    return getattr(getattr(driver, "info", None), "transaction_status", None) == _IN_ERROR
