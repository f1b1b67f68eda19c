"""What the errors of drivers mean: by their codes, each driver in its own way."""

from __future__ import annotations

import importlib
import itertools
import sqlite3
import typing as t

import psycopg
import pytest
import sqlalchemy as sa

from flask_sequence.rows.driver_errors import (
    Reason,
    code_of,
    is_after_failure,
    is_free,
    is_lock_timeout,
    is_missing_savepoint,
    is_missing_table,
    is_pooler,
    is_read_only,
    is_transient,
    reason_of,
)
from tests.support.application import Effect
from tests.support.waiting import wait_until

if t.TYPE_CHECKING:
    from tests.support.stepping import Stepping


def real(module: str, name: str) -> type[Exception]:
    """Take an exception of a driver; where it is not installed, one that looks like it."""
    try:
        return t.cast("type[Exception]", getattr(importlib.import_module(module), name))
    except ImportError:
        return type(name, (Exception,), {"__module__": module})


def with_code(error: Exception, name: str, code: object) -> Exception:
    """Give an exception a code as the driver does."""
    try:
        setattr(error, name, code)
    except AttributeError:  # psycopg2's can be set by unpickling only
        error.__setstate__({name: code})
    return error


def of_psycopg(code: str | None) -> Exception:
    return with_code(psycopg.OperationalError("text"), "sqlstate", code)


def of_psycopg2(code: str | None) -> Exception:
    return with_code(real("psycopg2", "OperationalError")("text"), "pgcode", code)


def of_pg8000(code: str | None) -> Exception:
    if code is None:
        return real("pg8000.exceptions", "InterfaceError")("network error")
    return real("pg8000.dbapi", "ProgrammingError")({"S": "ERROR", "C": code, "M": "text"})


def of_pymysql(code: int) -> Exception:
    return with_code(real("pymysql.err", "OperationalError")(code, "text"), "sqlstate", "HY000")


def of_mysqlclient(code: int) -> Exception:
    return real("MySQLdb", "OperationalError")(code, "text")


def of_mariadb(code: int) -> Exception:
    error = real("mariadb", "OperationalError")("text")
    return with_code(with_code(error, "errno", code), "sqlstate", "HY000")


def of_sqlite(code: int | None) -> Exception:
    error = sqlite3.OperationalError("text")
    if code is not None:
        error.sqlite_errorcode = code
    return error


POSTGRESQL: dict[str, t.Callable[[t.Any], Exception]] = {
    "psycopg": of_psycopg,
    "psycopg2": of_psycopg2,
    "pg8000": of_pg8000,
}
MYSQL: dict[str, t.Callable[[t.Any], Exception]] = {
    "pymysql": of_pymysql,
    "mysqlclient": of_mysqlclient,
    "mariadb": of_mariadb,
}
SQLITE: dict[str, t.Callable[[t.Any], Exception]] = {"sqlite3": of_sqlite}

CODES: list[tuple[dict[str, t.Callable[[t.Any], Exception]], Reason | None, t.Sequence[t.Any]]] = [
    (POSTGRESQL, Reason.CONFLICT, ("40001", "40P01", "55P03")),
    (POSTGRESQL, Reason.LOST, (None, "08000", "08006", "08P01", "57P01", "57P03", "57P05")),
    (POSTGRESQL, Reason.FULL, ("53100", "53300")),
    (POSTGRESQL, Reason.READ_ONLY, ("25006",)),
    (POSTGRESQL, Reason.POOLER, ("42P05", "26000")),
    (POSTGRESQL, Reason.LIMIT, ("57014", "25P03", "25P04")),
    (POSTGRESQL, None, ("42601", "42P01", "23505", "25P02", "53200", "53400", "22P05", "0A000")),
    (MYSQL, Reason.CONFLICT, (1020, 1205, 1213, 1412)),
    (MYSQL, Reason.LOST, (1047, 1053, 1158, 1159, 1160, 1161, 1927)),
    (MYSQL, Reason.LOST, (2002, 2003, 2006, 2013, 2014, 2045, 2055, 4031)),
    (MYSQL, Reason.FULL, (1021, 1040, 1114, 1203)),
    (MYSQL, Reason.READ_ONLY, (1290, 1792, 1836)),
    (MYSQL, Reason.LIMIT, (1317, 1969, 3024)),
    (MYSQL, None, (0, 1045, 1062, 1064, 1146, 1153, 1305, 1366, 2020)),
    (SQLITE, Reason.CONFLICT, (5, 6, 15, 261, 517)),
    (SQLITE, Reason.LOST, (10, 266)),
    (SQLITE, Reason.FULL, (13,)),
    (SQLITE, Reason.READ_ONLY, (8, 1032)),
    (SQLITE, None, (None, 1, 9, 14, 19, 2067)),
]
CASES = [
    pytest.param(make(code), reason, id=f"{driver}-{code}")
    for drivers, reason, codes in CODES
    for code, (driver, make) in itertools.product(codes, drivers.items())
]


def wrapped(orig: BaseException, statement: str | None = "SELECT 1") -> sa.exc.DBAPIError:
    return sa.exc.OperationalError(statement, {}, orig)


@pytest.mark.parametrize(("orig", "reason"), CASES)
def test_the_meaning_of_each_code_of_each_driver(orig: Exception, reason: Reason | None) -> None:
    error = wrapped(orig)
    assert reason_of(error) is reason
    assert is_transient(error) is (reason is not None)
    assert is_free(error) is (reason not in (None, Reason.LIMIT))
    assert is_pooler(error) is (reason is Reason.POOLER)
    assert is_read_only(orig) is (reason is Reason.READ_ONLY)
    assert not is_transient(orig)
    # Our own statement waited for somebody who had locked the run's row: no fault of the step.
    ours = wrapped(orig, "UPDATE sequence_runs SET version = version + 1")
    of_transaction = code_of(orig) in {("sqlstate", "25P03"), ("sqlstate", "25P04")}
    assert is_free(ours) is (reason is not None and not of_transaction)
    # The code says more than the loss of the connection, which may be its consequence.
    lost = sa.exc.DBAPIError("SELECT 1", {}, orig, connection_invalidated=True)
    assert reason_of(lost) is (reason or Reason.LOST)


@pytest.mark.parametrize(
    "text", ["deadlock", "40001", "database is locked", "server closed the connection", ""]
)
def test_a_text_means_nothing(text: str) -> None:
    assert reason_of(wrapped(Exception(text))) is None
    assert reason_of(wrapped(sqlite3.OperationalError(text))) is None


def test_a_refusal_by_the_driver_is_no_lost_connection() -> None:
    refused = psycopg.ProgrammingError("cannot adapt type")
    assert not is_transient(sa.exc.ProgrammingError("x", {}, refused))
    assert is_transient(sa.exc.TimeoutError())
    assert not is_transient(sa.exc.InvalidRequestError())


NAMED = [
    (is_lock_timeout, ("55P03", 1205, 5)),
    (is_after_failure, ("25P02", None, None)),
    (is_missing_savepoint, (None, 1305, None)),
]


@pytest.mark.parametrize(
    ("question", "orig", "expected"),
    [
        pytest.param(question, make(code), True, id=f"{question.__name__}-{driver}")
        for question, codes in NAMED
        for drivers, code in zip((POSTGRESQL, MYSQL, SQLITE), codes, strict=True)
        for driver, make in drivers.items()
        if code is not None
    ]
    + [
        pytest.param(question, make(code), False, id=f"{question.__name__}-{driver}-{code}")
        for question, _ in NAMED
        for drivers, code in ((POSTGRESQL, "42601"), (MYSQL, 1064), (SQLITE, 1))
        for driver, make in drivers.items()
    ],
)
def test_what_else_is_asked_of_a_code(
    question: t.Callable[[t.Any], bool], orig: Exception, expected: bool
) -> None:
    assert question(wrapped(orig)) is expected


def test_a_session_that_was_not_rolled_back_is_after_a_failure() -> None:
    assert is_after_failure(sa.exc.PendingRollbackError())
    assert not is_after_failure(ValueError())


def test_the_errors_of_real_servers(stepping: Stepping) -> None:
    with stepping.engine.connect() as connection:
        for statement in ("SELEC", "SELECT nothing FROM effects", "SELECT * FROM missing_table"):
            with pytest.raises(sa.exc.DBAPIError) as caught:
                connection.exec_driver_sql(statement)
            assert not is_transient(caught.value)
            assert not is_lock_timeout(caught.value)
            assert is_missing_table(caught.value.orig) is ("missing" in statement)
            connection.rollback()
        with pytest.raises(sa.exc.IntegrityError) as refused:
            connection.execute(sa.insert(Effect).values(id=1, step="", note=None))
        assert not is_transient(refused.value)
    assert not is_missing_table(None)


SLOW = {
    "postgresql": ("SET statement_timeout = 50", "SELECT pg_sleep(5)"),
    "mariadb": (
        "SET SESSION max_statement_time = 0.05",
        "SELECT count(*) FROM seq_1_to_20000 a, seq_1_to_20000 b WHERE a.seq + b.seq < 0",
    ),
}


def test_a_statement_that_takes_too_long(stepping: Stepping) -> None:
    if stepping.dialect == "sqlite":
        return  # it has no such limit
    limit, slow = SLOW[stepping.dialect]
    with stepping.engine.connect() as connection:
        connection.exec_driver_sql(limit)
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql(slow)
    assert reason_of(caught.value) is Reason.LIMIT


def test_a_transaction_that_idles_too_long(postgresql_stepping: Stepping) -> None:
    with postgresql_stepping.engine.connect() as connection:
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 50")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        count = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        with postgresql_stepping.engine.connect() as other:
            other.execution_options(isolation_level="AUTOCOMMIT")
            wait_until(lambda: other.scalar(count, {"pid": pid}) == 0)
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql("SELECT 1")
    assert caught.value.connection_invalidated
    assert reason_of(caught.value) is Reason.LIMIT


def test_a_write_where_only_reads_are_allowed_deserves_another_try(stepping: Stepping) -> None:
    forbid = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    if stepping.dialect != "postgresql":
        forbid = "SET SESSION TRANSACTION READ ONLY"
    if stepping.dialect == "sqlite":
        forbid = "PRAGMA query_only = ON"
    with stepping.engine.connect() as connection:
        connection.exec_driver_sql(forbid)
        connection.commit()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(sa.insert(Effect).values(note="x", step=""))
    assert reason_of(caught.value) is Reason.READ_ONLY
