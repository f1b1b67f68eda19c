"""The clock, short transactions, and which errors deserve another try."""

from __future__ import annotations

import contextlib
import datetime
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence.rows.columns import UTCDateTime
from flask_sequence.rows.dialects import (
    begin_immediate,
    clock,
    is_memory,
    later,
    release_guard,
    set_guard,
    short_transaction,
    single_statements,
)
from flask_sequence.rows.driver_errors import is_lock_timeout, is_transient
from flask_sequence.rows.listeners import meet
from flask_sequence.rows.prepared import Prepared
from tests.support.application import Effect
from tests.support.stepping import Stepping


@pytest.fixture
def engine(database_url: str) -> t.Iterator[sa.Engine]:
    """An engine as an application makes it."""
    engine = sa.create_engine(database_url, poolclass=NullPool)
    meet(engine)
    yield engine
    engine.dispose()


def insert(connection: sa.Connection) -> None:
    connection.execute(sa.insert(Effect).values(note="x", step=""))


def count(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(Effect)) or 0


def test_the_clock_is_that_of_the_statement(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        first = connection.scalar(sa.select(clock()))
        pause = {
            "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 400000)"
            " SELECT count(*) FROM n",
            "postgresql": "SELECT pg_sleep(0.05)",
        }.get(engine.dialect.name, "SELECT SLEEP(0.05)")
        connection.exec_driver_sql(pause)
        second, soon, ago = connection.execute(
            sa.select(clock(), later(90.5), later(-86400.25))
        ).one()
    assert isinstance(first, datetime.datetime)
    assert first.utcoffset() == datetime.timedelta(0)
    assert abs((datetime.datetime.now(datetime.UTC) - first).total_seconds()) < 5
    assert second > first
    assert (soon - second).total_seconds() == pytest.approx(90.5, abs=0.01)
    assert (ago - second).total_seconds() == pytest.approx(-86400.25, abs=0.01)


def test_a_short_transaction_commits_or_rolls_back(engine: sa.Engine) -> None:
    with short_transaction(engine) as connection:
        insert(connection)
    assert count(engine) == 1
    with contextlib.suppress(KeyError), short_transaction(engine) as connection:
        insert(connection)
        raise KeyError
    with single_statements(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Effect)) == 1


def test_a_short_transaction_in_that_of_a_test(engine: sa.Engine) -> None:
    with engine.connect() as outer:
        transaction = outer.begin()
        with short_transaction(outer) as connection:
            insert(connection)
        with contextlib.suppress(KeyError), short_transaction(outer) as connection:
            insert(connection)
            raise KeyError
        assert outer.scalar(sa.select(sa.func.count()).select_from(Effect)) == 1
        transaction.rollback()
    assert count(engine) == 0


def test_the_write_lock_is_taken_at_once(sqlite_url: str) -> None:
    first = sa.create_engine(sqlite_url, connect_args={"timeout": 0.05}, poolclass=NullPool)
    with short_transaction(first) as connection:
        begin_immediate(connection)  # Once is enough.
        with pytest.raises(sa.exc.OperationalError) as caught, short_transaction(first):
            pass
        with single_statements(first) as reader:
            assert reader.scalar(sa.select(sa.literal(1))) == 1
    assert is_transient(caught.value)
    assert is_lock_timeout(caught.value)


def test_a_savepoint_begins_a_transaction_on_sqlite(sqlite_url: str) -> None:
    engine = sa.create_engine(sqlite_url, poolclass=NullPool)
    meet(engine)
    with engine.connect() as connection:
        with connection.begin_nested():
            insert(connection)
        assert count(engine) == 0
        connection.rollback()
    assert count(engine) == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", True),
        ("sqlite:///memory.db", False),
        ("postgresql+psycopg://h/memory", False),
    ],
)
def test_a_database_in_memory(url: str, expected: bool) -> None:
    assert is_memory(sa.create_engine(url, poolclass=NullPool)) is expected


def test_the_guard_tells_whether_the_writes_still_stand(mariadb_stepping: Stepping) -> None:
    with mariadb_stepping.engine.connect() as connection:
        set_guard(connection)
        assert release_guard(connection)
        assert not release_guard(connection)
        own_id = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
        with mariadb_stepping.connect() as other:
            other.exec_driver_sql(f"KILL {own_id}")
        with pytest.raises(sa.exc.OperationalError) as caught:
            release_guard(connection)
        assert is_transient(caught.value)


def test_a_prepared_statement_goes_to_the_schema_of_its_connection() -> None:
    table = sa.Table("notes", sa.MetaData(), sa.Column("at", UTCDateTime()))
    insert = Prepared(sa.insert(table).values(at=sa.bindparam("moment", type_=UTCDateTime())))
    moments = [datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (1, 2)]
    with sa.create_engine("sqlite://").connect() as connection:
        connection.exec_driver_sql("ATTACH ':memory:' AS tenant")
        table.create(connection)
        connection.exec_driver_sql("CREATE TABLE tenant.notes (at DATETIME)")
        assert insert.send(connection, {"moment": moments[0]}).rowcount == 1
        translated = connection.execution_options(schema_translate_map={None: "tenant"})
        assert insert.send(translated, {"moment": moments[1]}).rowcount == 1
        assert connection.scalars(sa.select(table.c.at)).all() == moments[1:]
        plain = "SELECT at FROM main.notes"
        assert connection.exec_driver_sql(plain).scalars().all() == ["2026-01-01 00:00:00.000000"]
