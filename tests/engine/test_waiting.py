"""No verb of a request waits without a bound for what a stranger's transaction locks."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.pool import NullPool

from flask_sequence import BusyError, KeyBusyError, SequenceRun, Status
from flask_sequence.engine import control, waiting
from flask_sequence.engine.waiting import LockWaits, busy
from flask_sequence.rows.models import runs
from flask_sequence.testing import drain
from tests.support.application import Effect, db
from tests.support.starts import TwoSteps, committed, committed_notes, record_published
from tests.support.stepping import Stepping
from tests.support.strangers import Stranger
from tests.support.waiting import wait_until

BOUND = 1.0
"""How long a verb waits in these tests, in seconds."""


@dataclasses.dataclass
class Scene:
    """A run that stands where a test wants it, and a stranger who is about to lock it."""

    app: Flask
    stranger: Stranger
    run_id: int

    @property
    def run(self) -> SequenceRun:
        """The run, in the session at hand."""
        return control.find_run(self.run_id)

    def status(self) -> Status:
        """Where the run stands by what is committed."""
        [status] = committed(self.app, sa.select(runs.c.status).where(runs.c.id == self.run_id))
        return t.cast(Status, status)


@pytest.fixture(params=["postgresql", "mariadb"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Scene]:
    """A failed run with a key; inside an app context."""
    monkeypatch.setattr(waiting, "LOCK_SECONDS", BOUND)
    stepping: Stepping = request.getfixturevalue(f"{request.param}_stepping")
    with stepping.app.app_context():
        run = TwoSteps.set(key="k").start()
        db.session.commit()
        db.session.execute(sa.update(runs).values(status=Status.FAILED))
        db.session.commit()
        yield Scene(stepping.app, Stranger(stepping), run.id)


VERBS: dict[str, t.Callable[[SequenceRun], object]] = {
    "cancel": lambda run: run.cancel(),
    "retry": lambda run: run.retry(),
    "keyed start": lambda run: TwoSteps.set(key="other").start(),
    "keyed start again": lambda run: TwoSteps.set(key="k").start(),
    "start_many": lambda run: TwoSteps.start_many([{}, {}]),
}


def lock(scene: Scene, what: str) -> contextlib.AbstractContextManager[object]:
    """Lock the run by a row that refers to it, by itself, or with its whole table."""
    if what == "table":
        return scene.stranger.locking_table()
    return {"reference": scene.stranger.referring, "row": scene.stranger.locking}[what](
        scene.run_id
    )


def waits(kind: str, what: str, verb: str) -> bool:
    """Tell whether a verb has to wait: PostgreSQL's references stand in nobody's way."""
    if what == "table":
        return True
    return verb in {"cancel", "retry"} and (what, kind) != ("reference", "postgresql")


@pytest.mark.parametrize("what", ["reference", "row", "table"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_ends_in_time_and_leaves_the_callers_transaction(
    scene: Scene, verb: str, what: str
) -> None:
    kind = db.engine.dialect.name
    run = scene.run
    db.session.commit()
    db.session.add(Effect(note="mine"))
    with lock(scene, what):
        started = time.monotonic()
        if waits(kind, what, verb):
            error = KeyBusyError if "keyed" in verb else BusyError
            with pytest.raises(error, match="transaction"):
                VERBS[verb](run)
            assert BOUND <= time.monotonic() - started < 2 * BOUND
        else:
            VERBS[verb](run)
            assert time.monotonic() - started < BOUND
        db.session.commit()
    assert committed_notes(scene.app) == ["mine"]
    if waits(kind, what, verb):
        assert scene.status() is Status.FAILED
        VERBS[verb](run)
        db.session.commit()
    expected = {"cancel": Status.CANCELLED, "retry": Status.WAITING}
    assert scene.status() is expected.get(verb, Status.FAILED)


@pytest.mark.parametrize("what", ["reference", "row", "table"])
def test_a_verb_goes_on_once_the_stranger_has_ended(scene: Scene, what: str) -> None:
    run = scene.run
    db.session.commit()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(scene, what))
        release = stack.pop_all()
    timer = threading.Timer(BOUND / 2, release.close)
    timer.start()
    run.cancel()
    db.session.commit()
    timer.join()
    assert scene.status() is Status.CANCELLED


@pytest.mark.parametrize("what", ["reference", "row"])
def test_a_look_waits_for_nobody(scene: Scene, what: str) -> None:
    with lock(scene, what):
        assert scene.run.wait(0) is Status.FAILED


def test_a_look_at_a_locked_table_ends_in_time(scene: Scene) -> None:
    run = scene.run
    db.session.commit()
    with scene.stranger.locking_table():
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"Run {scene.run_id} is not seen .* is locked"):
            run.wait(0.5)
        assert 0.5 <= time.monotonic() - started < 2
    assert run.wait(0.5) is Status.FAILED


@pytest.mark.parametrize("scene", ["postgresql"], indirect=True)
def test_what_has_passed_is_taken_off_the_bound(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOCK_SECONDS", 30.0)
    waits = LockWaits(db.session(), busy("Something"))
    bounds: list[str] = []

    def look() -> None:
        bounds.append(waits.connection.exec_driver_sql("SHOW lock_timeout").scalar_one())

    def act() -> None:
        look()
        waits._until -= 25.0
        waits.tighten()
        look()

    waits.act(act)
    look()
    first, then, after = bounds
    assert (first, after) == ("30s", "0")
    assert 3000 < int(then.removesuffix("ms")) <= 5000


def test_a_look_waits_for_a_connection_of_the_pool_in_time(
    make_app: t.Callable[..., Flask], postgresql_url: str
) -> None:
    narrow = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60}
    app = make_app(postgresql_url, SQLALCHEMY_ENGINE_OPTIONS=narrow)
    with app.app_context():
        record_published(app)
        run = TwoSteps.start()
        db.session.commit()
        assert run.id  # which begins a transaction, and has the only connection
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="is not seen .* pool has no connection left"):
            run.wait(0.5)
        assert time.monotonic() - started < 5
        db.session.commit()
        run_id = control.id_of(run)
        with pytest.raises(TimeoutError, match=f"Run {run_id} is waiting at First after 0 s"):
            run.wait(0)


def test_on_sqlite_a_writer_is_waited_for_in_time(
    make_app: t.Callable[..., Flask], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOCK_SECONDS", BOUND)
    app = make_app(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 60}})
    with app.app_context():
        record_published(app)
        run = TwoSteps.start()
        db.session.commit()
        run_id = run.id
        db.session.commit()
        with sa.create_engine(sqlite_url, poolclass=NullPool).connect() as writer:
            writer.exec_driver_sql("BEGIN EXCLUSIVE")
            for name in ("cancel", "keyed start", "keyed start again", "start_many"):
                started = time.monotonic()
                with pytest.raises(BusyError):
                    VERBS[name](run)
                assert BOUND <= time.monotonic() - started < 2 * BOUND
                db.session.rollback()
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="locked"):
                run.wait(0.5)
            assert time.monotonic() - started < 2
            writer.rollback()
        control.find_run(run_id).cancel()
        db.session.commit()
        assert drain(app) == 0


def test_on_sqlite_a_transaction_that_begins_with_a_lock_is_waited_for_in_time(
    make_app: t.Callable[..., Flask], sqlite_url: str
) -> None:
    app = make_app(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 15}})
    with app.app_context():
        record_published(app)
        timeouts: list[int] = []

        @sa.event.listens_for(db.engine, "connect")
        def begin_nothing(driver: t.Any, record: object) -> None:
            driver.isolation_level = None

        @sa.event.listens_for(db.engine, "begin")
        def begin_immediate(connection: sa.Connection) -> None:
            timeouts.append(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        db.engine.dispose()
        run = TwoSteps.start()
        db.session.commit()
        with sa.create_engine(sqlite_url, poolclass=NullPool).connect() as writer:
            writer.exec_driver_sql("BEGIN IMMEDIATE")
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="locked"):
                run.wait(0.5)
            assert time.monotonic() - started < 5
            writer.rollback()
        with pytest.raises(TimeoutError, match="is waiting at First"):
            run.wait(0)
        timeouts.clear()
        assert control.find_run(control.id_of(run)).sequence == "TwoSteps"
        assert timeouts == [15_000]  # as it was before


def start_in_threads(app: Flask, keys: t.Sequence[str]) -> tuple[list[threading.Thread], list[str]]:
    """Write a row and start by a key, each in a thread, and commit; tell what came of each."""
    ends: list[str] = []

    def start(number: int, key: str) -> None:
        with app.app_context():
            db.session.add(Effect(note=str(number)))
            try:
                TwoSteps.set(key=key).start()
            except KeyBusyError:
                # Whether it can be committed or not, what was written before is not lost unseen.
                try:
                    db.session.commit()
                    ends.append(f"{number} busy")
                except sa.exc.PendingRollbackError:
                    ends.append(f"{number} lost")
                    db.session.rollback()
            else:
                db.session.commit()
                ends.append(f"{number} started")

    threads = [threading.Thread(target=start, args=each) for each in enumerate(keys)]
    for thread in threads:
        thread.start()
    return threads, ends


@pytest.mark.parametrize("keys", [1, 2], ids=["one key", "two keys"])
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_those_who_wait_for_a_key_whose_holder_rolls_back_get_the_run(
    request: pytest.FixtureRequest, make_app: t.Callable[..., Flask], kind: str, keys: int
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    app = make_app(url, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 20})
    record_published(app)
    with app.app_context():
        for key in range(keys):
            TwoSteps.set(key=f"k{key}").start()
        waiting = set[int]()

        def note(connection: t.Any, cursor: t.Any, statement: str, *_: t.Any) -> None:
            if statement.startswith("INSERT INTO sequence_runs"):
                waiting.add(threading.get_ident())

        sa.event.listen(db.engine, "before_cursor_execute", note)
        threads, ends = start_in_threads(app, [f"k{number % keys}" for number in range(6)])
        wait_until(lambda: len(waiting) == 6, 20)
        db.session.rollback()
        for thread in threads:
            thread.join()
    assert sorted(ends) == [f"{number} started" for number in range(6)]
    assert sorted(committed_notes(app)) == [str(number) for number in range(6)]
    assert len(committed(app, sa.select(runs.c.id))) == keys


def test_a_look_waits_no_longer_for_locks_than_there_is_time(
    postgresql_stepping: Stepping,
) -> None:
    bounds: list[str] = []
    with postgresql_stepping.app.app_context():
        for seconds in (30.0, 0.0):
            with waiting.brief_read(postgresql_stepping.runtime, seconds) as connection:
                bounds.append(connection.exec_driver_sql("SHOW lock_timeout").scalar_one())
    longest, shortest = bounds
    assert longest.startswith(("29", "30"))
    assert shortest == "1ms"
