"""What the errors of database drivers mean, by their codes: any text may hold a parameter."""

from __future__ import annotations

import enum
import typing as t

import sqlalchemy as sa

from ..failures import names_our_table

NO_ANSWER = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""What is raised where a server is not reached, or lets nobody in."""


class Reason(enum.Enum):
    """Why a statement failed that may succeed when it is sent again."""

    CONFLICT = "another transaction came first"
    LOST = "the connection or the server is gone"
    FULL = "the server, or the pool, has no room now"
    READ_ONLY = "the server takes no writes now, as after a failover"
    POOLER = "a pooler gave the connection's prepared statements to another one"
    LIMIT = "it took longer than a setting of the database allows"


class Code(t.NamedTuple):
    """A driver's code for an error."""

    family: t.Literal["sqlstate", "mysql", "sqlite"]
    value: str | int


_REASONS: t.Mapping[Reason, t.Mapping[str, t.Collection[str | int]]] = {
    Reason.CONFLICT: {
        # serialization_failure, deadlock_detected, lock_not_available
        "sqlstate": ("40001", "40P01", "55P03"),
        # a changed snapshot, a changed table, lock wait, deadlock
        "mysql": (1020, 1412, 1205, 1213),
        # BUSY, LOCKED, PROTOCOL: a race for the locks of a WAL
        "sqlite": (5, 6, 15),
    },
    Reason.LOST: {
        # the classes connection_exception and operator intervention: a shutdown, a crash
        "sqlstate": ("08", "57P"),
        # Galera's node is not ready, shutdown, network, killed; from 2002 on the client's own
        "mysql": {1047, 1053, 1158, 1159, 1160, 1161, 1927}
        | {2002, 2003, 2006, 2013, 2014, 2045, 2055, 4031},
        # IOERR
        "sqlite": (10,),
    },
    Reason.FULL: {
        # too_many_connections, disk_full
        "sqlstate": ("53300", "53100"),
        # disk full, too many connections, table full, too many of one user
        "mysql": (1021, 1040, 1114, 1203),
        "sqlite": (13,),
    },
    Reason.READ_ONLY: {
        "sqlstate": ("25006",),
        # --read-only, a transaction that only reads, read_only
        "mysql": (1290, 1792, 1836),
        "sqlite": (8,),
    },
    Reason.POOLER: {
        # duplicate_prepared_statement, invalid_sql_statement_name
        "sqlstate": ("42P05", "26000"),
    },
    Reason.LIMIT: {
        # query_canceled (statement_timeout), idle_in_transaction and transaction timeout
        "sqlstate": ("57014", "25P03", "25P04"),
        # KILL QUERY, max_statement_time, max_execution_time
        "mysql": (1317, 1969, 3024),
    },
}
"""Which codes deserve another try, and why; a PostgreSQL code may be the beginning of one.

Not in it, since the next try ends the same way: a row that is larger than ``max_allowed_packet``
(1153), a query that is larger than ``temp_file_limit`` (53400) or than the memory (53200).
"""


_SQLITE_UNIQUE = 2067
"""SQLite's code for it, in full."""
_LIMITS_OF_TRANSACTIONS = (Code("sqlstate", "25P03"), Code("sqlstate", "25P04"))
"""Limits that a step exceeds although it is our own statement that is told so."""
_LAST_WORDS = {
    "due to idle-in-transaction timeout": Code("sqlstate", "25P03"),
    "due to transaction timeout": Code("sqlstate", "25P04"),
}
"""What PostgreSQL says as it ends a connection: the first releases of psycopg 3 drop the code."""


def code_of(error: BaseException | None) -> Code | None:
    """Read a driver's code.

    :param error: What the driver raised, SQLAlchemy's ``orig``.
    :return: None where there is none: the server was not reached, or the driver itself refused.
    """
    first = error.args[0] if error is not None and error.args else None
    # MySQL's own number comes first: beside it, a state says little (HY000 for a lock, too).
    for number in (first, getattr(error, "errno", None)):  # PyMySQL, mysqlclient; MariaDB Connector
        if isinstance(number, int):
            return Code("mysql", number)
    number = getattr(error, "sqlite_errorcode", None)
    if isinstance(number, int):
        return Code("sqlite", number & 0xFF)
    told = first.get("C") if isinstance(first, dict) else None  # pg8000
    for state in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None), told):
        if isinstance(state, str):  # psycopg; psycopg2
            return Code("sqlstate", state)
    return next((code for words, code in _LAST_WORDS.items() if words in str(first)), None)


def reason_of(error: BaseException) -> Reason | None:
    """Tell why another try may succeed; None: it would end the same way.

    :param error: What was raised; only SQLAlchemy's errors of a driver or a pool have a reason.
    """
    if isinstance(error, sa.exc.TimeoutError):
        return Reason.FULL
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    code = code_of(error.orig)
    found = None if code is None else _reason_of_code(code)
    if found is None and (error.connection_invalidated or (code is None and _is_unheard(error))):
        return Reason.LOST
    return found


def _reason_of_code(code: Code) -> Reason | None:
    for reason, families in _REASONS.items():
        values = families.get(code.family, ())
        if code.value in values:
            return reason
        if code.family == "sqlstate" and str(code.value).startswith(_classes(values)):
            return reason
    return None


def _classes(values: t.Collection[str | int]) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str) and len(value) < 5)


def _is_unheard(error: sa.exc.DBAPIError) -> bool:
    # PostgreSQL's drivers have a code for whatever the server answers.
    orig = error.orig
    coded = any(hasattr(orig, name) for name in ("sqlstate", "pgcode"))
    packages = {kind.__module__.partition(".")[0] for kind in type(orig).__mro__}
    return (coded or "pg8000" in packages) and isinstance(error, NO_ANSWER)


def is_transient(error: BaseException) -> bool:
    """Tell whether another try of our own statement may succeed: a deadlock, a lost connection.

    :param error: What was raised.
    """
    return reason_of(error) is not None


def is_unheard(error: BaseException) -> bool:
    """Tell whether the database was not reached, or its answer did not come.

    :param error: What was raised.
    """
    return reason_of(error) is Reason.LOST


def is_free(error: BaseException) -> bool:
    """Tell whether an error that ended a step may cost the step none of its tries.

    It may where the reason lies outside the step. A limit that the step's own statements, or its
    idling between them, exceeded, does not: it exceeds it again.

    :param error: What was raised.
    """
    reason = reason_of(error)
    if reason is Reason.LIMIT:
        ours = names_our_table(getattr(error, "statement", None))
        return ours and code_of(getattr(error, "orig", None)) not in _LIMITS_OF_TRANSACTIONS
    return reason is not None


def is_pooler(error: BaseException) -> bool:
    """Tell whether a pooler such as PgBouncer mixed up prepared statements: never a step's fault.

    :param error: What was raised.
    """
    return reason_of(error) is Reason.POOLER


def is_read_only(error: BaseException | None) -> bool:
    """Tell whether a driver's error says that the server, or the transaction, may not write."""
    code = code_of(error)
    return code is not None and _reason_of_code(code) is Reason.READ_ONLY


def is_after_failure(error: BaseException) -> bool:
    """Tell whether a statement was refused since one before it had failed, maybe unseen.

    :param error: What was raised; by PostgreSQL, or by SQLAlchemy.
    """
    if isinstance(error, sa.exc.PendingRollbackError):
        return True
    aborted = Code("sqlstate", "25P02")
    return isinstance(error, sa.exc.DBAPIError) and code_of(error.orig) == aborted


def is_lock_timeout(error: sa.exc.DBAPIError) -> bool:
    """Tell whether a statement waited for a lock longer than it was allowed to."""
    # SQLite has one lock for all.
    return is_row_locked(error) or code_of(error.orig) == Code("sqlite", 5)


def is_row_locked(error: BaseException) -> bool:
    """Tell whether a statement waited too long for a row that somebody else has locked."""
    waited = Code("sqlstate", "55P03"), Code("mysql", 1205)
    return isinstance(error, sa.exc.DBAPIError) and code_of(error.orig) in waited


def is_deadlock(error: sa.exc.DBAPIError) -> bool:
    """Tell whether a transaction was chosen to end a deadlock.

    On MariaDB and MySQL all of it is lost then, its savepoints too, so that going back to one of
    them is what fails in the end.
    """
    chosen = Code("sqlstate", "40P01"), Code("mysql", 1213)
    return code_of(error.orig) in chosen or is_missing_savepoint(error)


def is_missing_table(error: BaseException | None) -> bool:
    """Tell whether a driver's error says that a table does not exist."""
    code = code_of(error)
    if code == Code("sqlite", 1):
        return "no such table" in str(error)  # SQLite has no code of its own for it
    return code in (Code("sqlstate", "42P01"), Code("mysql", 1146))


def is_missing_savepoint(error: sa.exc.DBAPIError) -> bool:
    """Tell whether MariaDB no longer knows a savepoint: the transaction that had it is gone."""
    return code_of(error.orig) == Code("mysql", 1305)


def is_taken(error: sa.exc.DBAPIError) -> bool:
    """Tell whether a unique index refused a statement, and no other constraint.

    :param error: What was raised.
    """
    by_sqlite = getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_UNIQUE
    return by_sqlite or code_of(error.orig) in (Code("sqlstate", "23505"), Code("mysql", 1062))


def is_integrity_error(error: BaseException) -> bool:
    """Tell whether a constraint refused a statement."""
    return isinstance(error, sa.exc.IntegrityError)
