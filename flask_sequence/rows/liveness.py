"""Connections of a worker whose other end has gone without a word, or may write no more."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import typing as t

import sqlalchemy as sa

from .columns import MYSQL
from .driver_errors import is_read_only

SILENT_SECONDS = 20
"""For how long the other end may acknowledge nothing; within 5 s more the kernel gives it up."""
PROBES = 3
RESTED_SECONDS = 5.0
"""A connection that has lain in the pool for longer is asked before it is used."""
CONNECT_SECONDS = 10
"""How long it may take to connect, to be let in, too."""

_KEEPALIVE = {
    "TCP_KEEPIDLE": SILENT_SECONDS // 2,
    "TCP_KEEPALIVE": SILENT_SECONDS // 2,  # its name on macOS
    "TCP_KEEPINTVL": SILENT_SECONDS // 4,
    "TCP_KEEPCNT": PROBES,
}
_WATCHED = "flask_sequence_watched"
_USED_AT = "flask_sequence_used_at"
_BOUNDED = "flask_sequence_bounded"


def keepalive_options() -> dict[int, int]:
    """Give the options of a TCP socket that is to be asked for signs of life, those known here."""
    return {getattr(socket, name): of for name, of in _KEEPALIVE.items() if hasattr(socket, name)}


def unanswered_options() -> dict[int, int]:
    """Give the options that bound how long what was sent may stay unanswered; only on Linux."""
    return {number: SILENT_SECONDS * 1000} if (number := _user_timeout()) else {}


def _user_timeout() -> int | None:
    return getattr(socket, "TCP_USER_TIMEOUT", None)


def watch_connections(engine: sa.Engine) -> None:
    """Notice it when the other end of a connection has gone; the application's own settings win.

    A statement may take as long as it likes: the other end's kernel answers meanwhile. It does not
    matter how the connections are made.

    :param engine: An engine of a worker; of the connections that its pool holds already, each is
        looked after from its next use on.
    """
    if engine.dialect.name not in {"postgresql", *MYSQL}:
        return
    listeners: dict[str, t.Callable[..., None]] = {
        "do_connect": _bound_connect,
        "connect": _keep_alive,
        "checkin": _note_use,
        "checkout": _Check(engine.dialect),
        "handle_error": _give_up_read_only,
    }
    for name, listener in listeners.items():
        sa.event.listen(engine, name, listener)


def _bound_connect(dialect: sa.Dialect, record: t.Any, args: t.Any, params: t.Any) -> None:
    if {"service", "read_default_file"} & params.keys() or {"PGSERVICE"} & os.environ.keys():
        return  # a file of the application's may say it
    if dialect.name != "postgresql" or "PGCONNECT_TIMEOUT" not in os.environ:
        params.setdefault("connect_timeout", CONNECT_SECONDS)
    if dialect.driver == "pymysql" and record is not None and "read_timeout" not in params:
        # Its connect_timeout ends before the server has let anybody in.
        params["read_timeout"] = CONNECT_SECONDS
        record.info[_BOUNDED] = True


def _keep_alive(driver: t.Any, record: t.Any) -> None:
    record.info[_WATCHED] = True
    if record.info.pop(_BOUNDED, False):
        driver._read_timeout = None
    number = socket_number(driver)
    if number is not None:
        with contextlib.suppress(OSError):  # not a socket, or a system that knows no such option
            _set_options(number, _chosen(driver))


def socket_number(driver: t.Any) -> int | None:
    """Return the number of the socket on which a driver's connection speaks, if there is one.

    :param driver: The connection.
    """
    # PyMySQL has a socket, the others tell its number.
    find: t.Callable[[], int] | None = getattr(getattr(driver, "_sock", driver), "fileno", None)
    return None if find is None else find()


def _chosen(driver: t.Any) -> set[str]:
    """Name what the application has chosen among libpq's parameters."""
    info: t.Any = getattr(driver, "info", None)
    if hasattr(info, "get_parameters"):
        return set(info.get_parameters())  # psycopg
    return set(getattr(info, "dsn_parameters", ()))  # psycopg2


def _set_options(number: int, chosen: set[str]) -> None:
    blocks = os.get_blocking(number)
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            if copy.family not in {socket.AF_INET, socket.AF_INET6}:
                return
            if not any(name.startswith("keepalives") for name in chosen):
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                _set_unless_changed(copy, keepalive_options())
            if "tcp_user_timeout" not in chosen:
                _set_unless_changed(copy, unanswered_options())
    finally:
        os.set_blocking(number, blocks)  # to make a socket object may change it


def _set_unless_changed(copy: socket.socket, options: dict[int, int]) -> None:
    with socket.socket(copy.family, socket.SOCK_STREAM) as fresh:
        if any(_option(copy, name) != _option(fresh, name) for name in options):
            return  # a listener of the application's, or what connects for it, was here
    for name, value in options.items():
        copy.setsockopt(socket.IPPROTO_TCP, name, value)


def _option(of: socket.socket, name: int) -> int:
    return of.getsockopt(socket.IPPROTO_TCP, name)


def note_use(connection: sa.Connection, at: float) -> None:
    """Note when a connection that is about to go back to its pool was used for the last time.

    :param connection: The connection.
    :param at: When, by the monotonic clock.
    """
    if not connection.closed and not connection.invalidated:
        connection.info[_USED_AT] = at


def _note_use(driver: t.Any, record: t.Any) -> None:
    record.info.setdefault(_USED_AT, time.monotonic())


class _Check:
    """Asks a connection that has rested whether it still leads anywhere.

    So a step that has not needed the database meanwhile does not fail at its first statement.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        self._dialect: t.Any = dialect

    def __call__(self, driver: t.Any, record: t.Any, proxy: t.Any) -> None:
        """Raise what lets the pool connect again, if it leads nowhere."""
        if _WATCHED not in record.info:
            _keep_alive(driver, record)
        now = time.monotonic()
        if now - record.info.pop(_USED_AT, now) < RESTED_SECONDS:
            return
        try:
            self._dialect.do_ping(driver)
        except self._dialect.loaded_dbapi.Error as error:
            if self._dialect.is_disconnect(error, driver, None):
                raise sa.exc.InvalidatePoolError from error


def _give_up_read_only(context: sa.engine.ExceptionContext) -> None:
    if is_read_only(context.original_exception):
        # A failover has left it with a replica: a new one may find the primary.
        context.is_disconnect = True
