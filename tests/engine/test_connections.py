"""Short transactions beside the session at hand."""

from __future__ import annotations

import contextlib
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.engine import connections
from flask_sequence.engine.connections import (
    KeptConnection,
    connection_of,
    fresh_read,
    own_transaction,
)
from flask_sequence.engine.runner import Message, advance
from flask_sequence.runtime import runtime_of
from tests.support.application import db
from tests.support.starts import wrapped_engine
from tests.support.stepping import Stepping, be_worker, make_step, note_by_core

if t.TYPE_CHECKING:
    from flask import Flask


def test_a_bind_that_is_not_found_is_the_callers_error(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runtime: object) -> t.NoReturn:
        raise LookupError("no bind")

    monkeypatch.setattr(connections, "bind_of", fail)
    with pytest.raises(LookupError, match="no bind"), own_transaction(sqlite_stepping.runtime):
        pass


def test_a_teardown_that_raises_leaves_a_short_transaction_alone(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "flask_sequence")
    problems = [ValueError("in the teardown")]

    @sqlite_stepping.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        if problems:
            raise problems.pop()

    with own_transaction(sqlite_stepping.runtime) as connection:
        assert connection.scalar(sa.select(1)) == 1
    assert "in the teardown" in caplog.text
    assert not db.session.registry.registry


def test_a_fresh_read_of_a_database_in_memory_is_on_the_one_connection(
    make_app: t.Callable[..., Flask],
) -> None:
    app = make_app("sqlite://")
    with app.app_context():
        db.session.execute(sa.text("CREATE TABLE here (n INT)"))
        with fresh_read(runtime_of(app)) as connection:
            assert connection is connection_of(db.session())
            connection.exec_driver_sql("SELECT n FROM here")


def test_a_fresh_read_in_a_tests_own_transaction_is_on_its_connection(
    sqlite_stepping: Stepping,
) -> None:
    app = sqlite_stepping.app
    with app.app_context(), wrapped_engine(app, db), fresh_read(runtime_of(app)) as connection:
        engine: object = db.engines[None]
        assert connection is engine


# The connection that is kept


@pytest.fixture
def keeping(make_app: t.Callable[..., Flask], postgresql_url: str) -> Stepping:
    """An application that keeps a connection through a burst."""
    stepping = Stepping(make_app(postgresql_url, SEQUENCE_BURST_SECONDS=60))
    worker = be_worker(stepping.app)
    worker.kept = KeptConnection(worker.engine)
    return stepping


class Lent:
    """How many connections the pool has lent, and the most at once."""

    def __init__(self, stepping: Stepping) -> None:
        self.times = self.now = self.most = 0
        with stepping.app.app_context():
            self.engine = db.engine
        sa.event.listen(self.engine, "checkout", self._out)
        sa.event.listen(self.engine, "checkin", self._back)

    def _out(self, *_: object) -> None:
        self.times += 1
        self.now += 1
        self.most = max(self.most, self.now)

    def _back(self, *_: object) -> None:
        self.now -= 1


def quiet(step: t.Any) -> None:
    step.data["n"] += 1


def test_a_burst_of_quiet_steps_takes_one_connection(keeping: Stepping) -> None:
    run_id = keeping.start(*(make_step(quiet, f"s{number}") for number in range(5)), n=0)
    row, lent = keeping.row(run_id), Lent(keeping)
    assert advance(keeping.runtime, run_id, row.version).status is Status.FINISHED
    assert (lent.times, lent.now) == (1, 0)
    assert keeping.row(run_id).data["n"] == 5


@pytest.mark.parametrize("event", ["checkout", "checkin", "connect"])
def test_what_listens_to_the_pool_may_use_the_connection(keeping: Stepping, event: str) -> None:
    def use(driver: t.Any, *_: object) -> None:
        with driver.cursor() as cursor:
            cursor.execute("SELECT 1")

    with keeping.app.app_context():
        sa.event.listen(db.engine, event, use)
        db.engine.dispose()
    run_id = keeping.start(make_step(lambda step: note_by_core("here"), "s1"))
    for kept in (keeping.runtime.worker.kept if keeping.runtime.worker else None, None):
        if keeping.runtime.worker:
            keeping.runtime.worker.kept = kept
        row = keeping.row(run_id)
        assert advance(keeping.runtime, run_id, row.version).status is Status.FINISHED
        run_id = keeping.start(make_step(quiet, "s1"), n=0)


def test_what_is_kept_goes_back_before_a_session_needs_it(keeping: Stepping) -> None:
    def noisy(step: t.Any) -> None:
        note_by_core("here")

    steps = [make_step(quiet, "s1"), make_step(noisy, "s2"), make_step(quiet, "s3")]
    run_id = keeping.start(*steps, n=0)
    row, lent = keeping.row(run_id), Lent(keeping)
    assert advance(keeping.runtime, run_id, row.version).status is Status.FINISHED
    assert (lent.times, lent.most, lent.now) == (3, 1, 0)
    assert (keeping.row(run_id).data["n"], keeping.notes()) == (2, ["here"])


def test_a_step_that_uses_no_session_holds_it_in_no_transaction(keeping: Stepping) -> None:
    seen: list[tuple[int, list[str]]] = []

    def look(step: t.Any) -> None:
        with keeping.connect() as connection:
            states = connection.exec_driver_sql(
                "SELECT state FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            seen.append((lent.now, list(states.scalars())))

    run_id = keeping.start(make_step(quiet, "s1"), look, make_step(quiet, "s3"), n=0)
    row, lent = keeping.row(run_id), Lent(keeping)
    assert advance(keeping.runtime, run_id, row.version).status is Status.FINISHED
    assert seen == [(1, ["idle"])]
    assert (lent.times, lent.now) == (1, 0)


def test_a_pool_that_does_not_take_it_back_does_not_undo_the_outcome(
    keeping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = keeping.start(make_step(quiet, "s1"), make_step(quiet, "s2", queue="other"), n=0)
    with keeping.app.app_context():
        engine = db.engine

    def refuse(*_: object) -> t.NoReturn:
        raise ValueError("not taken back")

    sa.event.listen(engine, "checkin", refuse)
    outcome = advance(keeping.runtime, run_id, keeping.row(run_id).version)
    sa.event.remove(engine, "checkin", refuse)
    assert outcome.nudge is not None
    assert "A connection was not taken back by its pool" in caplog.messages


def test_what_is_kept_is_taken_anew_after_a_rest(
    keeping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = Lent(keeping)
    kept = KeptConnection(lent.engine)

    def use() -> None:
        with kept.statements() as connection:
            assert connection.scalar(sa.select(1)) == 1

    use()
    use()
    assert (lent.times, lent.now) == (1, 1)
    monkeypatch.setattr(connections, "KEPT_SECONDS", -1.0)
    use()
    assert (lent.times, lent.now) == (2, 1)
    kept.give_back()
    assert (lent.times, lent.now) == (2, 0)


def test_what_is_kept_goes_back_after_an_error(keeping: Stepping) -> None:
    lent = Lent(keeping)
    kept = KeptConnection(lent.engine)
    with pytest.raises(sa.exc.ProgrammingError), kept.statements() as connection:
        connection.exec_driver_sql("SELECT nothing")
    assert (lent.times, lent.now) == (1, 0)
    with kept.statements() as connection:
        assert connection.scalar(sa.select(1)) == 1
    kept.give_back()


def test_what_gave_an_answer_that_cannot_be_read_is_not_taken_again(keeping: Stepping) -> None:
    pid = sa.text("SELECT pg_backend_pid()")
    with keeping.app.app_context():
        url = db.engine.url
    engine = sa.create_engine(url, pool_size=1, max_overflow=0)
    kept, found = KeptConnection(engine), []
    with contextlib.suppress(ValueError), kept.statements() as connection:
        found.append(connection.scalar(pid))
        raise ValueError
    with kept.statements() as connection:
        found.append(connection.scalar(pid))
    kept.give_back()
    engine.dispose()
    assert len(set(found)) == 2


@pytest.mark.parametrize("label", ["", "Made.end"])
def test_what_a_step_has_set_for_its_connection_keeps_no_other_back(
    keeping: Stepping, label: str
) -> None:
    """A claim that cannot be read there is read again, by another connection."""

    def spoil(step: t.Any) -> None:
        db.session.execute(sa.text("SET DateStyle = 'German'"))

    def end(step: t.Any) -> None:
        pass

    spoiling = keeping.start(make_step(spoil, "spoil"))
    run_id = keeping.start(make_step(end, "end"))
    keeping.advance(spoiling)
    message = Message(label=label)
    outcome = advance(keeping.runtime, run_id, 0, message=message)
    row = keeping.row(run_id)
    assert (outcome.status, row.status, row.crashes) == (Status.FINISHED, Status.FINISHED, 0)


def test_a_kept_connection_that_was_cut_costs_no_step(keeping: Stepping) -> None:
    def cut(step: t.Any) -> None:
        step.data["n"] += 1
        if not seen:
            seen.append(step.attempt)
            with keeping.connect() as connection:
                others = "pid <> pg_backend_pid() AND datname = current_database()"
                connection.exec_driver_sql(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
                )

    seen: list[int] = []
    run_id = keeping.start(make_step(quiet, "s1"), make_step(cut, "s2"), n=0)
    version = keeping.row(run_id).version
    assert advance(keeping.runtime, run_id, version).status is Status.FINISHED
    row = keeping.row(run_id)
    assert (row.data["n"], row.retries, row.crashes) == (2, 0, 0)
