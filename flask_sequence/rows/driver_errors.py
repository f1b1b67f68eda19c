"""What the errors of database drivers mean: which deserve another try. It goes by their codes."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

NO_ANSWER = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""What is raised where a server is not reached, or lets nobody in."""

_TRANSIENT_SQLSTATES = frozenset(
    {"40001", "40P01", "55P03", "57014", "25006", "25P03", "25P04", "53300", "53100"}
)
_TRANSIENT_CLASSES = ("08", "57P")
_TRANSIENT_MYSQL = frozenset(
    {1020, 1021, 1040, 1053, 1114, 1205, 1213, 1290, 1317, 1792, 1836, 1927, 1969}
    | {2002, 2003, 2006, 2013, 2014, 2055, 3024, 4031}
)
_READ_ONLY_MYSQL = frozenset({1290, 1792, 1836})
_TRANSIENT_SQLITE = frozenset({5, 6, 8, 10, 13, 15})
# BUSY, LOCKED, READONLY, IOERR, FULL, PROTOCOL (a race for the locks of a WAL)


def is_transient(error: BaseException) -> bool:
    """Tell whether the database itself asks for another try: a deadlock, a lock, a lost connection.

    It goes by the driver's code, since any text may stand in a bound parameter.

    :param error: What was raised; only SQLAlchemy's ``DBAPIError`` can be transient.
    """
    if isinstance(error, sa.exc.DBAPIError):
        return error.connection_invalidated or _is_transient_code(error)
    return isinstance(error, sa.exc.TimeoutError)  # no connection left in the pool


def is_after_failure(error: BaseException) -> bool:
    """Tell whether a statement was refused since one before it had failed, maybe unseen.

    :param error: What was raised; by PostgreSQL, or by SQLAlchemy.
    """
    if isinstance(error, sa.exc.PendingRollbackError):
        return True
    return isinstance(error, sa.exc.DBAPIError) and bool(_sqlstate(error.orig) == "25P02")


def is_lock_timeout(error: sa.exc.DBAPIError) -> bool:
    """Tell whether a statement waited for a lock longer than it was allowed to."""
    if (sqlite_code := getattr(error.orig, "sqlite_errorcode", None)) is not None:
        return bool(sqlite_code & 0xFF == 5)  # BUSY; there is one lock for all
    return bool(_sqlstate(error.orig) == "55P03" or _number(error.orig) == 1205)


def is_read_only(error: BaseException | None) -> bool:
    """Tell whether a driver's error says that the server, or the transaction, may not write."""
    return bool(_sqlstate(error) == "25006" or _number(error) in _READ_ONLY_MYSQL)


def _sqlstate(error: BaseException | None) -> t.Any:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _number(error: BaseException | None) -> t.Any:
    return error.args[0] if error is not None and error.args else None


def _is_transient_code(error: sa.exc.DBAPIError) -> bool:
    number = _number(error.orig)
    if isinstance(number, int):
        return number in _TRANSIENT_MYSQL  # Its own state says little: HY000 for a lock, too.
    sqlstate = _sqlstate(error.orig)
    if isinstance(sqlstate, str):
        return sqlstate in _TRANSIENT_SQLSTATES or sqlstate.startswith(_TRANSIENT_CLASSES)
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return sqlite_code & 0xFF in _TRANSIENT_SQLITE
    # There is no answer to have a code: the server was not reached, or the driver refused.
    has_codes = hasattr(error.orig, "sqlstate") or hasattr(error.orig, "pgcode")
    return has_codes and isinstance(error, NO_ANSWER)


def is_missing_table(error: BaseException | None) -> bool:
    """Tell whether a driver's error says that a table does not exist."""
    if getattr(error, "sqlite_errorname", None) == "SQLITE_ERROR":
        return "no such table" in str(error)  # SQLite has no code of its own for it
    return bool(_sqlstate(error) == "42P01" or _number(error) == 1146)


def is_integrity_error(error: BaseException) -> bool:
    """Tell whether a constraint refused a statement."""
    return isinstance(error, sa.exc.IntegrityError)
