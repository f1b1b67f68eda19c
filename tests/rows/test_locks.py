"""What is locked stands in nobody's way, and nothing waits without a bound."""

from __future__ import annotations

import contextlib
import time
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.rows import moves, reads, statements, upkeep
from flask_sequence.rows.driver_errors import is_lock_timeout
from flask_sequence.rows.locks import bounded_lock_wait, bounded_update
from flask_sequence.rows.models import runs
from flask_sequence.rows.statements import UPDATE_BY_ID
from tests.support.stepping import Stepping, make_step, note
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
            due = reads.due(connection, queues=["celery"], quiet=0, among=5, limit=5)
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


class TestBoundedUpdate:
    """Moves and claims, for which a stranger's lock on the run's row is no reason to wait on."""

    @pytest.fixture
    def stepping(
        self, postgresql_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
    ) -> t.Iterator[Stepping]:
        kept = (statements._update, statements._update_and_tell, statements._update_or_fail)
        monkeypatch.setattr(statements, "MOVE_SECONDS", 1)
        for each in kept:
            each.cache_clear()
        yield postgresql_stepping
        for each in kept:
            each.cache_clear()

    def test_a_claim_is_left_to_the_sweep(self, stepping: Stepping) -> None:
        stranger, run_id = Stranger(stepping), stepping.start(do)
        began = time.monotonic()
        with stranger.locking(run_id):
            assert stepping.advance(run_id).status is None
        assert time.monotonic() - began < moves.CLAIM_SECONDS + 2
        assert stepping.advance(run_id).status is Status.FINISHED

    @pytest.mark.parametrize("writes", [False, True])
    def test_a_step_does_not_wait_without_end_for_its_commit(
        self, stepping: Stepping, writes: bool
    ) -> None:
        stranger, bodies = Stranger(stepping), 0

        def body(step: t.Any) -> None:
            nonlocal bodies
            bodies += 1
            if writes:
                note("done")
            if bodies == 1:
                locks.enter_context(stranger.locking(step.run.id))
            else:
                locks.close()

        with contextlib.ExitStack() as locks:
            assert stepping.run(make_step(body, max_retries=0)).status is Status.FINISHED
        assert (bodies, stepping.notes()) == (2, ["done"] * writes)

    def test_a_bound_of_the_applications_own_holds(self, stepping: Stepping) -> None:
        stranger, run_id = Stranger(stepping), stepping.start(do)
        statement = bounded_update(UPDATE_BY_ID.where(runs.c.id == run_id), 60)
        began = time.monotonic()
        with stranger.locking(run_id), stepping.connect() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                connection.execute(statement.values(queue="other"))
        assert time.monotonic() - began < 5

    def test_the_bound_ends_with_its_transaction(self, stepping: Stepping) -> None:
        run_id = stepping.start(do)
        with stepping.engine.connect() as connection:
            statement = bounded_update(UPDATE_BY_ID.where(runs.c.id == run_id), 60)
            shown = "SHOW lock_timeout"
            with connection.begin():
                assert connection.execute(statement.values(queue="other")).rowcount == 1
                assert connection.exec_driver_sql(shown).scalar() == "1min"
            assert connection.exec_driver_sql(shown).scalar() == "0"


def test_on_mariadb_not_to_wait_is_no_second(mariadb_stepping: Stepping) -> None:
    text = "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"
    with mariadb_stepping.connect() as connection:
        before = connection.exec_driver_sql(text).one()
        with bounded_lock_wait(connection, 0) as bound:
            assert connection.exec_driver_sql(text).one() == (0, 0)
            bound(1.5)
            assert connection.exec_driver_sql(text).one() == (2, 2)
        assert connection.exec_driver_sql(text).one() == before
