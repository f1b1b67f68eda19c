"""What is locked stands in nobody's way, and nothing waits without a bound."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from flask_sequence.rows import reads, upkeep
from flask_sequence.rows.driver_errors import is_lock_timeout
from flask_sequence.rows.locks import bounded_lock_wait
from flask_sequence.rows.models import runs
from tests.support.stepping import Stepping, note
from tests.support.strangers import Stranger


def do(step: object) -> None:
    note("done")


class TestLockRows:
    def test_a_row_that_refers_to_a_run_hides_it_from_nobody(
        self, postgresql_stepping: Stepping
    ) -> None:
        stepping = postgresql_stepping
        stranger, run_id = Stranger(stepping), stepping.start(do)
        stepping.set(run_id, published_at=None)
        with stranger.referring(run_id), stepping.connect() as connection:
            due = reads.due(connection, queues=["celery"], quiet=0, limit=5)
            assert [row.id for row in due] == [run_id]
            assert reads.lock(connection, [run_id]) == [run_id]

    def test_what_is_locked_keeps_nobody_from_referring_to_it(
        self, postgresql_stepping: Stepping
    ) -> None:
        stepping = postgresql_stepping
        stranger, run_id = Stranger(stepping), stepping.start(do)
        with stepping.connect() as connection:
            assert reads.lock(connection, [run_id]) == [run_id]
            with stranger.referring(run_id):
                pass

    @pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
    def test_what_somebody_locks_is_left_out(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stranger = Stranger(stepping)
        first, second = stepping.start(do), stepping.start(do)
        with stranger.locking(first), stepping.connect() as connection:
            assert reads.lock(connection, [first, second]) == [second]

    @pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
    def test_a_run_that_somebody_refers_to_is_not_deleted_yet(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stranger = Stranger(stepping)
        first, second = stepping.start(do), stepping.start(do)
        for run_id in (first, second):
            stepping.advance(run_id)
        with stranger.referring(first), stepping.connect() as connection:
            assert upkeep.delete(connection, [first, second]) == 1
        assert stepping.row(first) is not None
        with stepping.connect() as connection:
            assert upkeep.delete(connection, [first, second]) == 1
        assert stepping.row(first) is stepping.row(second) is None


class TestBoundedLockWait:
    READS = {
        "postgresql": "SHOW lock_timeout",
        "mariadb": "SELECT concat(@@innodb_lock_wait_timeout, ' ', @@lock_wait_timeout)",
        "sqlite": "PRAGMA busy_timeout",
    }

    def test_it_holds_within_the_block_only(self, stepping: Stepping) -> None:
        read = self.READS[stepping.dialect]
        with stepping.engine.connect() as connection:
            before = connection.exec_driver_sql(read).scalar_one()
            with bounded_lock_wait(connection, 2) as bound:
                inside = connection.exec_driver_sql(read).scalar_one()
                bound(1)
                tightened = connection.exec_driver_sql(read).scalar_one()
            assert connection.exec_driver_sql(read).scalar_one() == before
        assert (inside, tightened) == {
            "postgresql": ("2s", "1s"),
            "mariadb": ("2 2", "1 1"),
            "sqlite": (2000, 1000),
        }[stepping.dialect]

    @pytest.mark.parametrize(
        ("kind", "write"),
        [
            ("postgresql", "SET lock_timeout = '300ms'"),
            ("mariadb", "SET SESSION innodb_lock_wait_timeout = 1, SESSION lock_wait_timeout = 1"),
            ("sqlite", "PRAGMA busy_timeout = 300"),
        ],
    )
    def test_a_shorter_one_of_the_application_holds(
        self, request: pytest.FixtureRequest, kind: str, write: str
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        with stepping.engine.connect() as connection:
            connection.exec_driver_sql(write)
            before = connection.exec_driver_sql(self.READS[kind]).scalar_one()
            with bounded_lock_wait(connection, 2):
                assert connection.exec_driver_sql(self.READS[kind]).scalar_one() == before
            assert connection.exec_driver_sql(self.READS[kind]).scalar_one() == before

    @pytest.mark.parametrize("seconds", [0, 0.5])
    @pytest.mark.parametrize("what", ["row", "table"])
    @pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
    def test_a_statement_waits_no_longer(
        self, request: pytest.FixtureRequest, kind: str, what: str, seconds: float
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stranger, run_id = Stranger(stepping), stepping.start(do)
        lock = stranger.locking(run_id) if what == "row" else stranger.locking_table()
        touch = sa.update(runs).where(runs.c.id == run_id).values(queue="other")
        with stepping.engine.connect() as connection, lock:
            started = time.monotonic()
            with (
                bounded_lock_wait(connection, seconds),
                pytest.raises(sa.exc.OperationalError) as caught,
                connection.begin_nested(),
            ):
                connection.execute(touch)
            assert is_lock_timeout(caught.value)
            assert time.monotonic() - started < seconds + 1.5
            connection.rollback()

    def test_a_failed_transaction_keeps_its_error(self, postgresql_stepping: Stepping) -> None:
        with (
            postgresql_stepping.engine.connect() as connection,
            pytest.raises(sa.exc.ProgrammingError, match="nothing"),
            bounded_lock_wait(connection, 2),
        ):
            connection.exec_driver_sql("SELECT nothing")
