"""Connections of a thread of its own: made as the application makes its own, and bounded."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import typing as t

import sqlalchemy as sa

from .dialects import begin_immediate, is_mysql

SERVER_SECONDS = 2
"""How long a server may take to take a connection, or to be silent on one."""
IDLE_SECONDS = 10
"""How long a transaction may stand still until its server ends it, with its locks."""

_LIBPQ = {
    "connect_timeout": SERVER_SECONDS,
    "tcp_user_timeout": SERVER_SECONDS * 1000,
    "keepalives": 1,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": SERVER_SECONDS,
}
_MYSQL = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), SERVER_SECONDS)
_LIMITS: dict[str, t.Mapping[str, t.Any]] = {
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL,
    "mysqldb": _MYSQL,
}
"""What a driver is told besides what the application tells it, by the driver's name."""

_connecting = threading.local()


class TimeIsUp(Exception):  # noqa: N818
    """A transaction has had all the time that it may take."""


class OwnConnections:
    """The connections of one thread, one at a time.

    They come from where the application's engine has its own (its ``creator``, what listens to
    it, its execution options), but not out of its pool.

    :param engine: The application's engine.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._pool: sa.Pool | None = None
        self._taken: sa.PoolProxiedConnection | None = None
        if not sa.event.contains(engine, "do_connect", _connect_bounded):
            sa.event.listen(engine, "do_connect", _connect_bounded)

    @contextlib.contextmanager
    def transaction(self, *, statement: float, until: float) -> t.Iterator[sa.Connection]:
        """Run a transaction, committed at the end, rolled back on an error.

        :param statement: The most seconds that one of its statements may take.
        :param until: When no other statement may begin, by the monotonic clock.
        :raises TimeIsUp: If one would.
        """
        connection = sa.Connection(self._engine, self.open())  # kept for the next transaction
        if connection.dialect.name == "postgresql":
            # With BEGIN: after it, a listener of the application's may send the first statement.
            connection.execution_options(isolation_level="READ COMMITTED")
        try:
            with connection.begin():
                _bound(connection, statement)
                begin_immediate(connection)
                _stop_at(connection, until)
                yield connection
        except sa.exc.DBAPIError:
            # A COMMIT that SQLite has refused leaves its locks behind, which nobody else may have.
            self.close()
            raise

    def open(self) -> sa.PoolProxiedConnection:
        """Connect, unless there is a connection that is kept.

        :raises Exception: What the driver raises, or whatever makes its connections.
        """
        if self._taken is not None and self._taken.is_valid:
            try:
                # What listens to it may have sent a statement, and with it begun a transaction.
                self._taken.rollback()
                return self._taken
            except Exception as error:
                self._taken.invalidate(error)
        self.close()
        self._pool = self._engine.pool.recreate()
        _connecting.bounded = True
        try:
            self._taken = self._pool.connect()
        finally:
            _connecting.bounded = False
        driver: t.Any = self._taken.driver_connection
        if hasattr(driver, "_read_timeout"):  # PyMySQL's; a worker's own are without
            driver._read_timeout = SERVER_SECONDS
        self._taken.rollback()
        return self._taken

    def close(self) -> None:
        """Close the connection that is kept, if there is one."""
        taken, pool, self._taken, self._pool = self._taken, self._pool, None, None
        try:
            if taken is not None:
                _close(taken)
        finally:
            if pool is not None:
                pool.dispose()


def _close(taken: sa.PoolProxiedConnection) -> None:
    driver: t.Any = taken.dbapi_connection
    try:
        taken.close()
    except Exception:
        driver.close()  # a listener has raised before its pool had it
        raise


def _connect_bounded(
    dialect: sa.Dialect, record: t.Any, args: t.Sequence[t.Any], params: t.Mapping[str, t.Any]
) -> t.Any:
    """Ask those that listen after this one, and connect with more parameters; for this thread."""
    if not getattr(_connecting, "bounded", False):
        return None
    # Copies: with some releases of SQLAlchemy they are those of all connections.
    args, params = list(args), dict(params)
    listeners = iter(dialect.dispatch.do_connect)
    for listener in itertools.dropwhile(lambda each: each is not _connect_bounded, listeners):
        if listener is not _connect_bounded:
            connection = listener(dialect, record, args, params)
            if connection is not None:
                return connection
    return dialect.connect(*args, **{**params, **_LIMITS.get(dialect.driver, {})})


def _bound(connection: sa.Connection, seconds: float) -> None:
    """Let no statement of a transaction take longer, and no lock of it last."""
    millis = round(seconds * 1000)
    if connection.dialect.name == "postgresql":
        # For this transaction only: behind a pooler, others have the connection a moment later.
        connection.exec_driver_sql(
            f"SET LOCAL statement_timeout = {millis};"
            f" SET LOCAL lock_timeout = {millis // 2};"
            f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}"
        )
    elif is_mysql(connection):
        bounds = f"max_execution_time = {millis}"
        if getattr(connection.dialect, "is_mariadb", False):
            bounds = f"max_statement_time = {seconds}, idle_transaction_timeout = {IDLE_SECONDS}"
        waits = "innodb_lock_wait_timeout = 1, lock_wait_timeout = 1"
        connection.exec_driver_sql(f"SET SESSION {waits}, {bounds}")
    elif connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {millis}")


def _stop_at(connection: sa.Connection, until: float) -> None:
    def check(*_: t.Any) -> None:
        if time.monotonic() > until:
            raise TimeIsUp("its time was up")

    sa.event.listen(connection, "before_cursor_execute", check)
