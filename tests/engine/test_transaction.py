from __future__ import annotations

import contextlib
import gc
import typing as t
import weakref

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sequence import BaseSequence, ReadOnlyError, SequenceRun, Step
from flask_sequence.engine.transaction import uncommitted
from flask_sequence.errors import KeyBusyError
from flask_sequence.rows import reads
from flask_sequence.runtime import Nudge, mark_of, runtime_of
from flask_sequence.testing import drain
from tests.support.application import Base, Effect, db
from tests.support.starts import (
    TwoSteps,
    committed_notes,
    committed_runs,
    record_published,
    wrapped_engine,
    wrapped_session,
)

MakeApp = t.Callable[..., Flask]


@pytest.fixture
def published(app: Flask) -> t.Iterator[list[Nudge]]:
    """What ``app`` publishes, inside an app context of it."""
    with app.app_context():
        yield record_published(app)


def ids(nudges: t.Iterable[Nudge]) -> list[int]:
    return [nudge.run_id for nudge in nudges]


class TestCommit:
    def test_publishes_after_the_commit_only(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start(note="a")
        assert sa.inspect(run).pending
        db.session.flush()
        assert published == []
        assert committed_runs(app) == []

        db.session.commit()

        mark = mark_of(run.uid)
        assert published == [
            Nudge(run_id=run.id, version=0, label="TwoSteps.First", queue="celery", mark=mark)
        ]
        assert committed_runs(app) == [run.id]

    def test_publishes_each_run_once(self, published: list[Nudge]) -> None:
        runs = [TwoSteps.start(note=str(number)) for number in range(3)]
        db.session.commit()
        db.session.add(Effect(note="later"))
        db.session.commit()
        assert sorted(ids(published)) == sorted(run.id for run in runs)

    def test_publishes_from_a_session_of_ones_own(self, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.expunge(run)
        with Session(db.engine) as session:
            session.add(run)
            session.commit()
            assert ids(published) == [run.id]

    def test_publishes_under_a_replaced_session(
        self, published: list[Nudge], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replaced = scoped_session(sessionmaker(bind=db.engine))
        monkeypatch.setattr(db, "session", replaced)
        run = TwoSteps.start()
        replaced.commit()
        assert ids(published) == [run.id]
        replaced.remove()


class TestRollback:
    @pytest.mark.parametrize("flush", [False, True])
    @pytest.mark.parametrize("end", ["rollback", "close", "remove"])
    def test_leaves_nothing(
        self, app: Flask, published: list[Nudge], flush: bool, end: str
    ) -> None:
        TwoSteps.start()
        if flush:
            db.session.flush()
        getattr(db.session, end)()
        db.session.commit()
        assert published == []
        assert committed_runs(app) == []

        run = TwoSteps.start()
        db.session.commit()
        assert ids(published) == [run.id]

    def test_of_an_exception_in_a_context_leaves_nothing(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        with contextlib.suppress(ZeroDivisionError), app.app_context():
            TwoSteps.start()
            db.session.flush()
            raise ZeroDivisionError
        assert committed_runs(app) == []
        assert published == []


class TestFailingCommit:
    def test_at_the_flush(self, app: Flask, published: list[Nudge]) -> None:
        db.session.add(Effect(id=1, note="first"))
        db.session.commit()

        TwoSteps.start()
        db.session.add(Effect(id=1, note="second"))
        with pytest.raises(sa.exc.IntegrityError) as caught:
            db.session.commit()
        assert type(caught.value) is sa.exc.IntegrityError
        db.session.rollback()

        assert published == []
        assert committed_runs(app) == []
        run = TwoSteps.start()
        db.session.commit()
        assert ids(published) == [run.id]

    def test_at_the_commit_itself(self, make_app: MakeApp, postgresql_url: str) -> None:
        app = make_app(postgresql_url)
        with app.app_context():
            published = record_published(app)
            db.session.execute(
                sa.text("CREATE TABLE late (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
            )
            db.session.commit()
            TwoSteps.start()
            db.session.execute(sa.text("INSERT INTO late VALUES (1), (1)"))
            with pytest.raises(sa.exc.IntegrityError) as caught:
                db.session.commit()
            assert type(caught.value) is sa.exc.IntegrityError
            db.session.rollback()
            assert published == []
            assert committed_runs(app) == []
            assert "flask_sequence_written" not in db.session().info

    def test_by_a_listener_of_the_application(self, app: Flask, published: list[Nudge]) -> None:
        session = db.session()

        @sa.event.listens_for(session, "before_commit")
        def refuse(session: Session) -> None:
            raise ZeroDivisionError

        TwoSteps.start()
        with pytest.raises(ZeroDivisionError):
            session.commit()
        sa.event.remove(session, "before_commit", refuse)
        session.rollback()
        session.commit()
        assert published == []
        assert committed_runs(app) == []

    def test_that_publishing_fails_is_no_error(
        self, app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with app.app_context():
            run = TwoSteps.start()
            db.session.flush()
            celery = runtime_of(app).celery
            monkeypatch.delitem(celery.tasks, "flask_sequence.advance")
            db.session.commit()
            assert committed_runs(app) == [run.id]
            assert "cannot be published" in caplog.text
            db.session.add(Effect(note="the session is usable"))
            db.session.commit()


class TestSavepoint:
    def test_released(self, published: list[Nudge]) -> None:
        with db.session.begin_nested():
            run = TwoSteps.start()
        assert published == []
        assert uncommitted(db.session()) == ["TwoSteps.First"]
        db.session.commit()
        assert ids(published) == [run.id]

    def test_rolled_back(self, app: Flask, published: list[Nudge]) -> None:
        before = TwoSteps.start()
        savepoint = db.session.begin_nested()
        TwoSteps.start()
        db.session.flush()
        savepoint.rollback()
        after = TwoSteps.start()
        db.session.commit()
        assert sorted(ids(published)) == sorted([before.id, after.id])
        assert sorted(ids(published)) == committed_runs(app)

    def test_closed(self, app: Flask, published: list[Nudge]) -> None:
        savepoint = db.session.begin_nested()
        TwoSteps.start()
        db.session.flush()
        savepoint.close()
        assert uncommitted(db.session()) == []
        run = TwoSteps.start()
        db.session.commit()
        assert ids(published) == [run.id] == committed_runs(app)

    def test_closed_around_a_released_one(self, app: Flask, published: list[Nudge]) -> None:
        outer = db.session.begin_nested()
        with db.session.begin_nested():
            TwoSteps.start()
        outer.close()
        db.session.commit()
        assert published == []
        assert committed_runs(app) == []

    @pytest.mark.parametrize("inner", ["commit", "rollback"])
    @pytest.mark.parametrize("outer", ["commit", "rollback"])
    def test_nested(self, app: Flask, published: list[Nudge], outer: str, inner: str) -> None:
        around = db.session.begin_nested()
        TwoSteps.start(note="outer")
        within = db.session.begin_nested()
        TwoSteps.start(note="inner")
        db.session.flush()
        getattr(within, inner)()
        assert published == []
        getattr(around, outer)()
        assert published == []
        db.session.commit()
        expected = 0 if outer == "rollback" else 1 + (inner == "commit")
        assert len(published) == expected
        assert sorted(ids(published)) == committed_runs(app)

    def test_ended_by_the_rollback_around_it(self, app: Flask, published: list[Nudge]) -> None:
        db.session.begin_nested()
        TwoSteps.start()
        db.session.flush()
        db.session.rollback()
        db.session.commit()
        assert published == []
        assert committed_runs(app) == []

    def test_as_the_first_write_holds_nothing_after_a_rollback(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        with db.session.begin_nested():
            TwoSteps.start()
        assert committed_runs(app) == []
        db.session.rollback()
        assert committed_runs(app) == []

    def test_with_a_failed_flush(self, app: Flask, published: list[Nudge]) -> None:
        db.session.add(Effect(id=1))
        run = TwoSteps.start()
        savepoint = db.session.begin_nested()
        TwoSteps.start()
        db.session.flush()
        with pytest.raises(sa.exc.IntegrityError):
            db.session.execute(sa.insert(Effect).values(id=1))
        savepoint.rollback()
        db.session.commit()
        assert ids(published) == [run.id] == committed_runs(app)

    def test_released_within_a_flush(self, app: Flask, published: list[Nudge]) -> None:
        session = db.session()

        @sa.event.listens_for(session, "after_flush", once=True)
        def start(session: Session, context: object) -> None:
            with session.begin_nested():
                session.execute(sa.insert(Effect).values(note="listener"))
                started.extend(TwoSteps.start_many([{}]))

        started: list[int] = []
        run = TwoSteps.start()
        session.commit()
        assert sorted(ids(published)) == sorted([run.id, *started]) == committed_runs(app)


class TestFailedFlush:
    def test_that_is_swallowed_leaves_nothing(self, app: Flask, published: list[Nudge]) -> None:
        db.session.add(Effect(id=1))
        db.session.commit()
        TwoSteps.start()
        db.session.add(Effect(id=1))
        with pytest.raises(sa.exc.IntegrityError):
            db.session.flush()
        db.session.rollback()
        db.session.commit()
        assert published == []
        assert committed_runs(app) == []


class TestOuterTransaction:
    """A transaction that the session does not own, as test fixtures have."""

    @pytest.fixture(params=["engine", "session"])
    def wrapped(
        self, request: pytest.FixtureRequest, make_app: MakeApp, database_url: str
    ) -> t.Iterator[Flask]:
        options = {"join_transaction_mode": "create_savepoint"}
        database = SQLAlchemy(model_class=Base, session_options=options)
        app = make_app(database_url, database=database)
        wrap = wrapped_engine if request.param == "engine" else wrapped_session
        with app.app_context(), wrap(app, database):
            yield app

    def test_publishes_nothing(self, wrapped: Flask) -> None:
        published = record_published(wrapped)
        session = wrapped.extensions["sqlalchemy"].session
        run = TwoSteps.start()
        session.commit()
        assert session.get(SequenceRun, run.id) is run
        assert published == []
        assert uncommitted(session()) == []

    def test_publishes_nothing_of_many(self, wrapped: Flask) -> None:
        published = record_published(wrapped)
        TwoSteps.start_many([{}, {}])
        wrapped.extensions["sqlalchemy"].session.commit()
        assert published == []

    def test_is_drained(self, wrapped: Flask) -> None:
        session = wrapped.extensions["sqlalchemy"].session
        run = TwoSteps.start(note="a")
        session.commit()
        assert drain(wrapped) == 2
        assert run.status == "finished"
        assert session.get(SequenceRun, run.id) is run
        assert session.scalars(sa.select(Effect.step).order_by(Effect.id)).all() == [
            "First",
            "Second",
        ]
        session.add(Effect(note="b"))
        session.rollback()
        assert run.status == "finished"

    def test_leaves_nothing_behind(self, make_app: MakeApp, database_url: str) -> None:
        database = SQLAlchemy(model_class=Base)
        app = make_app(database_url, database=database)
        with app.app_context():
            with wrapped_session(app, database):
                TwoSteps.start(note="a")
                database.session.commit()
                drain(app)
            assert committed_runs(app) == []
            assert committed_notes(app) == []

    def test_a_keyed_start(self, wrapped: Flask) -> None:
        session = wrapped.extensions["sqlalchemy"].session
        first = TwoSteps.set(key="k").start()
        session.commit()
        assert TwoSteps.set(key="k").start() is first
        drain(wrapped)
        second = TwoSteps.set(key="k").start()
        assert second.id != first.id

    def test_the_default_join_mode_publishes_nothing(
        self, make_app: MakeApp, database_url: str
    ) -> None:
        database = SQLAlchemy(model_class=Base)
        app = make_app(database_url, database=database)
        published = record_published(app)
        with app.app_context(), wrapped_engine(app, database):
            TwoSteps.start()
            database.session.commit()
            assert published == []

    def test_the_session_in_control_publishes(self, app: Flask, published: list[Nudge]) -> None:
        with db.engine.connect() as connection:
            connection.begin()
            with Session(connection, join_transaction_mode="control_fully") as session:
                run = TwoSteps.start()
                db.session.expunge(run)
                session.add(run)
                session.commit()
                assert ids(published) == [run.id]


class TestExpunge:
    def test_before_the_flush_starts_nothing(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.expunge(run)
        assert uncommitted(db.session()) == []
        db.session.commit()
        assert published == []
        assert committed_runs(app) == []

    def test_after_the_flush_takes_nothing_back(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.flush()
        db.session.expunge(run)
        db.session.commit()
        assert ids(published) == committed_runs(app)
        assert len(published) == 1


class TestMerge:
    def test_of_an_unchanged_run(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start(nested={"a": [1]})
        db.session.commit()
        assert run.data == {"nested": {"a": [1]}}
        db.session.expunge(run)
        merged = db.session.merge(run)
        db.session.commit()
        assert merged.id == run.id
        assert len(published) == 1

    def test_of_one_that_was_never_flushed_is_refused(self, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.expunge(run)
        db.session.merge(run)
        with pytest.raises(ReadOnlyError, match=r"start\(\)"):
            db.session.commit()
        db.session.rollback()
        db.session.add(run)
        db.session.commit()
        assert ids(published) == [run.id]


class TestKey:
    def test_that_only_a_fresh_read_shows(
        self, app: Flask, published: list[Nudge], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = TwoSteps.set(key="k").start(note="first")
        db.session.commit()
        first_id = first.id
        db.session.expunge_all()
        asked: list[sa.Connection] = []
        find_active = reads.find_active

        def find(connection: sa.Connection, sequence: str, key: str) -> int | None:
            asked.append(connection)
            return None if len(asked) < 3 else find_active(connection, sequence, key)

        monkeypatch.setattr(reads, "find_active", find)
        again = TwoSteps.set(key="k").start(note="second")
        assert (sa.inspect(again).identity, again.data["note"]) == ((first_id,), "first")
        assert asked[2] is not asked[1]
        assert again in db.session

    def test_that_comes_and_goes(
        self, app: Flask, published: list[Nudge], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        TwoSteps.set(key="k").start()
        db.session.commit()
        monkeypatch.setattr(reads, "find_active", lambda *_: None)
        db.session.add(Effect(note="mine"))
        with pytest.raises(KeyBusyError):
            TwoSteps.set(key="k").start()
        db.session.commit()
        assert committed_notes(app) == ["mine"]

    def test_an_error_that_is_no_lock_reaches_the_caller(
        self, make_app: MakeApp, sqlite_url: str
    ) -> None:
        with make_app(sqlite_url).app_context():
            session = db.session()

            @sa.event.listens_for(session, "before_flush")
            def look(session: t.Any, *_: object) -> None:
                if session.new:
                    session.execute(sa.text("SELECT 1 FROM nowhere"))

            with pytest.raises(sa.exc.OperationalError, match="no such table: nowhere"):
                TwoSteps.set(key="k").start()
            sa.event.remove(session, "before_flush", look)

    def test_none_of_many(self, published: list[Nudge]) -> None:
        assert TwoSteps.start_many([]) == []


class TestBookkeeping:
    def test_leaves_no_trace(self, published: list[Nudge]) -> None:
        session = db.session()
        session.add(Effect())
        session.commit()
        assert "flask_sequence_written" not in session.info
        for end in (session.commit, session.rollback, session.close):
            with session.begin_nested():
                TwoSteps.start()
            savepoint = session.begin_nested()
            TwoSteps.start_many([{}] * 3)
            savepoint.rollback()
            TwoSteps.start()
            session.flush()
            assert "flask_sequence_written" in session.info
            end()
            assert "flask_sequence_written" not in session.info

    def test_holds_no_run(self, make_app: MakeApp, sqlite_url: str) -> None:
        app = make_app(sqlite_url)
        record_published(app)
        with app.app_context():
            run = weakref.ref(TwoSteps.start())
            db.session.commit()
            db.session.expunge_all()
            gc.collect()
            assert run() is None


class TestInsideAStep:
    def test_a_start_is_part_of_the_step(self, app: Flask, published: list[Nudge]) -> None:
        class StartChild(Step):
            retry_jitter = False
            default_retry_delay = 0

            def perform(self) -> None:
                TwoSteps.start(note="child")
                TwoSteps.set(key="child").start(note="keyed")
                TwoSteps.start_many([{"note": "many"}])
                db.session.flush()
                db.session.add(Effect(note=f"attempt {self.attempt}"))
                if self.attempt == 1:
                    raise ValueError("after the start")

        parent = _sequence("Parent", StartChild).start()
        db.session.commit()
        published.clear()
        assert drain(app) == 2 + 3 * 2
        assert parent.status == "finished"
        assert len(committed_runs(app)) == 1 + 3
        assert sorted(committed_notes(app)) == sorted(
            ["attempt 2"] + 2 * ["child", "keyed", "many"]
        )
        assert len(set(ids(published))) == len(published) == 3

    def test_a_start_before_a_checkpoint_is_kept(self, app: Flask, published: list[Nudge]) -> None:
        class StartThenFail(Step):
            autoretry_for = ()

            def perform(self) -> None:
                TwoSteps.start(note="kept")
                db.session.commit()
                TwoSteps.start(note="lost")
                db.session.flush()
                raise ValueError

        parent = _sequence("Checkpoint", StartThenFail).start()
        db.session.commit()
        drain(app)
        assert parent.status == "failed"
        assert committed_notes(app) == ["kept", "kept"]

    def test_a_failed_run_started_nothing(self, app: Flask, published: list[Nudge]) -> None:
        class StartThenStop(Step):
            def perform(self) -> t.NoReturn:
                TwoSteps.start()
                db.session.flush()
                self.fail("enough")

        _sequence("Stops", StartThenStop).start()
        db.session.commit()
        drain(app)
        assert len(committed_runs(app)) == 1


def _sequence(name: str, *steps: type[Step[t.Any]]) -> t.Any:
    return type(name, (BaseSequence,), {"steps": steps, "__module__": __name__})
