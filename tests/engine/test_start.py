from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import datetime
import gc
import logging
import math
import pickle
import re
import threading
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.pool import NullPool

from flask_sequence import (
    BaseSequence,
    DataError,
    DataTooLargeError,
    EmptySequenceError,
    InvalidOptionError,
    KeyBusyError,
    Sequence,
    SequenceRun,
    SetupError,
    Status,
    step,
)
from flask_sequence.definition.data import WARN_BYTES
from flask_sequence.engine import waiting
from flask_sequence.rows import models
from flask_sequence.runtime import Nudge
from flask_sequence.testing import drain
from tests.support.application import Effect, close_app, db
from tests.support.starts import (
    Fails,
    TwoSteps,
    committed,
    committed_notes,
    committed_runs,
    record_published,
)
from tests.support.stepping import make_sequence, make_step

MakeApp = t.Callable[..., Flask]
UTC = datetime.UTC


@pytest.fixture
def sqlite_app(make_app: MakeApp, sqlite_url: str) -> t.Iterator[Flask]:
    """An application on SQLite, inside an app context of it."""
    app = make_app(sqlite_url)
    with app.app_context():
        yield app


class TestStart:
    def test_writes_a_waiting_run(self, app: Flask) -> None:
        with app.app_context():
            run = TwoSteps.start(name="Joel", n=1)
            assert run.data == {"name": "Joel", "n": 1}
            assert run.status is Status.WAITING
            db.session.commit()
            assert (run.sequence, run.step, run.status) == ("TwoSteps", "First", Status.WAITING)
            assert (run.version, run.attempt, run.retries, run.crashes) == (0, 0, 0, 0)
            assert (run.key, run.error, run.finished_at, run.started_at) == (None,) * 4
            assert run.data == {"name": "Joel", "n": 1}
            now = datetime.datetime.now(UTC)
            for time in (run.created_at, run.updated_at, run.due_at):
                assert time is not None
                assert abs(now - time) < datetime.timedelta(seconds=10)

    def test_sends_no_sql(self, sqlite_app: Flask) -> None:
        statements: list[str] = []
        listener = lambda *args: statements.append(args[2])  # noqa: E731
        sa.event.listen(db.engine, "before_cursor_execute", listener)
        TwoSteps.start(name="Joel")
        TwoSteps(name="Joel")
        assert statements == []
        db.session.flush()
        assert len(statements) == 2

    def test_copies_the_data(self, sqlite_app: Flask) -> None:
        names = ["a"]
        run = TwoSteps.start(names=names)
        names.append("b")
        db.session.commit()
        assert run.data == {"names": ["a"]}

    @pytest.mark.parametrize("end", ["flush", "commit", None])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
    def test_can_be_copied_and_pickled(
        self, sqlite_app: Flask, copied: t.Callable[[t.Any], t.Any], end: str | None
    ) -> None:
        run = TwoSteps.set(priority=3, countdown=5).start(names=["a"])
        if end:
            getattr(db.session, end)()
        assert (run.sequence, run.data) == ("TwoSteps", {"names": ["a"]})
        other = copied(run)
        assert (other.sequence, other.data, other.id) == (run.sequence, run.data, run.id)
        db.session.commit()
        db.session.refresh(run)

    def test_can_be_added_again_after_a_rollback(self, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.flush()
        db.session.rollback()
        db.session.add(run)
        db.session.commit()
        assert [nudge.run_id for nudge in published] == [run.id]

    def test_leaves_nothing_behind(self, sqlite_app: Flask) -> None:
        before = len(models._started)
        TwoSteps.start()
        assert len(models._started) == before + 1
        db.session.commit()
        db.session.close()
        gc.collect()
        assert len(models._started) <= before

    def test_takes_any_name(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start(cls=1, self=2, data=3, unnamed=4)
        many = TwoSteps.set(priority=1).start(self=1, data=2)
        db.session.commit()
        assert run.data == {"cls": 1, "self": 2, "data": 3, "unnamed": 4}
        assert many.data == {"self": 1, "data": 2}

    @pytest.mark.parametrize(
        ("data", "path"),
        [
            ({"a": {"b": [object()]}}, r'data\["a"\]\["b"\]\[0\]'),
            ({"a": {1, 2}}, r'data\["a"\]'),
            ({"a": (letter for letter in "ab")}, r'data\["a"\]'),
            ({"a": math.nan}, r'data\["a"\]'),
            ({"a": {1: 2}}, r'data\["a"\]\[1\]'),
            ({"a": "\0"}, r'data\["a"\]'),
        ],
    )
    def test_refused_data_leaves_the_session_usable(
        self, sqlite_app: Flask, data: dict[str, t.Any], path: str
    ) -> None:
        db.session.add(Effect(note="mine"))
        with pytest.raises(DataError, match=path):
            TwoSteps.start(**data)
        with pytest.raises(TypeError, match=path.replace("data", r"many\[1\]")):
            TwoSteps.start_many([{}, data])
        with pytest.raises(DataError, match=path):
            TwoSteps.set(key="k").start(**data)
        db.session.commit()
        assert committed_notes(sqlite_app) == ["mine"]
        assert committed_runs(sqlite_app) == []

    def test_data_that_refer_to_themselves(self, sqlite_app: Flask) -> None:
        data: list[t.Any] = []
        data.append(data)
        with pytest.raises(DataError, match="itself"):
            TwoSteps.start(data=data)

    def test_data_that_are_too_large(self, make_app: MakeApp, sqlite_url: str) -> None:
        with make_app(sqlite_url, SEQUENCE_MAX_DATA_BYTES=100).app_context():
            TwoSteps.start(text="x" * 80)
            with pytest.raises(DataTooLargeError):
                TwoSteps.start(text="x" * 100)

    def test_of_an_abstract_sequence(self, sqlite_app: Flask) -> None:
        class Abstract(BaseSequence):
            pass

        for start in (Abstract, Abstract.start, lambda: Abstract.start_many([]), Abstract.set):
            with pytest.raises(EmptySequenceError, match="Abstract"):
                start()

    def test_of_five_hundred_steps(self, app: Flask) -> None:
        def count(data: t.Any) -> None:
            data["n"] += 1

        class Long(BaseSequence):
            steps = [step(name=f"count {number}")(count) for number in range(500)]

        with app.app_context():
            record_published(app)
            run = Long.set(countdown=3600).start(n=0)
            db.session.commit()
            with pytest.raises(AssertionError, match="max_steps"):
                drain(app, ignore_due=True, max_steps=20)
            assert run.data == {"n": 20}
            assert run.step == "count 20"


class TestSetup:
    def test_no_context(self, sqlite_app: Flask) -> None:
        errors: list[SetupError] = []

        def run(start: t.Callable[[], object]) -> None:
            with pytest.raises(SetupError, match=r"app\.app_context\(\)") as caught:
                start()
            errors.append(caught.value)

        starts: tuple[t.Callable[[], object], ...] = (
            TwoSteps.start,
            TwoSteps,
            lambda: TwoSteps.start_many([{}]),
            lambda: TwoSteps.set(key="k").start(),
        )
        for start in starts:
            thread = threading.Thread(target=run, args=(start,))  # where no context is active
            thread.start()
            thread.join()
        assert len(errors) == len(starts)

    def test_not_initialised(self) -> None:
        with Flask("other").app_context(), pytest.raises(SetupError, match=r"init_app\(app\)"):
            TwoSteps.start()

    def test_missing_tables(self, make_app: MakeApp, empty_database_url: str) -> None:
        with make_app(empty_database_url).app_context():
            TwoSteps.start()
            with pytest.raises(SetupError, match="flask db upgrade"):
                db.session.flush()
            db.session.rollback()
            with pytest.raises(SetupError, match="flask db upgrade"):
                TwoSteps.set(key="k").start()
            db.session.rollback()
            with pytest.raises(SetupError, match="flask sequence init"):
                db.session.get(SequenceRun, 1)
            db.session.rollback()

    def test_a_missing_table_of_the_application(
        self, make_app: MakeApp, empty_database_url: str
    ) -> None:
        with make_app(empty_database_url).app_context():
            SequenceRun.__table__.create(db.engine)  # type: ignore[attr-defined]
            joined = sa.select(Effect).join(SequenceRun, SequenceRun.id == Effect.run_id)
            with pytest.raises(sa.exc.DBAPIError, match="effects"):
                db.session.execute(joined)
            db.session.rollback()


class TestForgottenCommit:
    @pytest.fixture
    def client(self, make_app: MakeApp, sqlite_url: str) -> t.Any:
        app = make_app(sqlite_url, PROPAGATE_EXCEPTIONS=False)

        @app.get("/<what>")
        def handler(what: str) -> t.Any:
            TwoSteps.start()
            if what == "flushed":
                db.session.flush()
            elif what == "many":
                TwoSteps.start_many([{}, {}])
            elif what == "committed":
                db.session.commit()
            elif what == "rolled-back":
                db.session.rollback()
            elif what == "expunged":
                db.session.expunge_all()
            elif what == "closed-savepoint":
                db.session.rollback()
                savepoint = db.session.begin_nested()
                TwoSteps.start()
                db.session.flush()
                savepoint.close()
            elif what == "exception":
                raise ZeroDivisionError
            return what, 422 if what == "refused" else 200

        return app.test_client()

    @pytest.mark.parametrize(
        ("what", "named"),
        [
            ("pending", "TwoSteps.First"),
            ("flushed", "TwoSteps.First"),
            ("many", r"TwoSteps.First \(3 times\)"),
            ("committed", None),
            ("rolled-back", None),
            ("expunged", None),
            ("closed-savepoint", None),
            ("refused", None),
            ("exception", None),
        ],
    )
    def test_in_a_request(
        self, client: t.Any, what: str, named: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.get(f"/{what}")
        warnings = [
            record.getMessage()
            for record in caplog.records
            if record.name == "flask_sequence" and record.levelno == logging.WARNING
        ]
        assert len(warnings) == (named is not None)
        if named:
            assert re.search(named, warnings[0])
            assert "db.session.commit()" in warnings[0]

    @pytest.mark.parametrize(
        ("end", "warns"), [("nothing", True), ("commit", False), ("rollback", False)]
    )
    def test_in_a_plain_context(
        self,
        make_app: MakeApp,
        sqlite_url: str,
        end: str,
        warns: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with make_app(sqlite_url).app_context():
            TwoSteps.start()
            getattr(db.session, end, lambda: None)()
        told = (
            "Started and not committed: TwoSteps.First. They will not run: call"
            " db.session.commit() after start()."
        )
        assert caplog.messages == [told] * warns

    @pytest.mark.parametrize("commits", [False, True])
    def test_a_teardown_function_of_the_application_may_commit(
        self, sqlite_url: str, commits: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = Flask("teardown")
        app.config.update(SQLALCHEMY_DATABASE_URI=sqlite_url, CELERY={"broker_url": "memory://"})
        db.init_app(app)

        def commit(error: BaseException | None) -> None:
            if commits:
                db.session.commit()

        app.teardown_appcontext(commit)
        Sequence(app)
        app.teardown_appcontext(lambda error: None)
        with app.app_context():
            TwoSteps.start()
        assert ("not committed" in caplog.text) is not commits
        with app.app_context():
            assert db.session.query(SequenceRun).count() == commits
        close_app(app)

    def test_with_an_exception_in_a_plain_context(
        self, make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with contextlib.suppress(ZeroDivisionError), make_app(sqlite_url).app_context():
            TwoSteps.start()
            raise ZeroDivisionError
        assert "not committed" not in caplog.text


class TestSet:
    @pytest.mark.parametrize(
        "options",
        [
            {"key": ""},
            {"key": 17},
            {"key": "x" * 256},
            {"key": " a"},
            {"key": "a "},
            {"key": "a\nb"},
            {"key": "a\0"},
            {"countdown": -1},
            {"countdown": True},
            {"countdown": "5"},
            {"countdown": math.nan},
            {"countdown": math.inf},
            {"eta": "tomorrow"},
            {"eta": datetime.datetime(2030, 1, 1)},
            {"eta": 5},
            {"eta": datetime.datetime(2030, 1, 1, tzinfo=UTC), "countdown": 1},
            {"queue": ""},
            {"queue": 1},
            {"priority": 10},
            {"priority": -1},
            {"priority": "high"},
            {"priority": True},
        ],
        ids=repr,
    )
    def test_refuses(self, options: dict[str, t.Any]) -> None:
        with pytest.raises(InvalidOptionError, match=next(iter(options))):
            TwoSteps.set(**options)

    def test_refuses_an_unknown_option(self) -> None:
        with pytest.raises(TypeError, match="que"):
            TwoSteps.set(que="mail")  # type: ignore[arg-type]

    def test_queue_and_priority_go_with_the_run(self, published: list[Nudge]) -> None:
        run = TwoSteps.set(queue="mail", priority=7).start()
        db.session.commit()
        assert run.queue == "mail"
        assert [(nudge.queue, nudge.priority) for nudge in published] == [("mail", 7)]

    def test_queue_and_priority_of_a_step_come_first(self, sqlite_app: Flask) -> None:
        published = record_published(sqlite_app)
        own = make_step(lambda step: None, "own", queue="mail", priority=3)
        plain = make_step(lambda step: None, "plain")
        for first in (own, plain):
            make_sequence(first).set(queue="bulk", priority=7).start()
        make_sequence(plain).start()
        db.session.commit()
        assert [(nudge.queue, nudge.priority) for nudge in published] == [
            ("mail", 3),
            ("bulk", 7),
            ("celery", None),
        ]

    @pytest.mark.parametrize("zone", [UTC, datetime.timezone(datetime.timedelta(hours=-7.5))])
    def test_eta(self, published: list[Nudge], zone: datetime.tzinfo) -> None:
        eta = datetime.datetime(2090, 3, 1, 12, 30, 1, 234567, tzinfo=zone)
        run = TwoSteps.set(eta=eta).start()
        db.session.commit()
        assert run.due_at == eta
        assert run.due_at.utcoffset() == datetime.timedelta()
        assert published == []

    @pytest.mark.parametrize("year", [1, 1969, 9999])
    def test_an_eta_that_not_every_database_knows(self, app: Flask, year: int) -> None:
        with pytest.raises(InvalidOptionError, match="between the years 1970 and 9998"):
            TwoSteps.set(eta=datetime.datetime(year, 12, 31, 23, tzinfo=UTC))

    def test_an_eta_that_has_passed(self, app: Flask, published: list[Nudge]) -> None:
        eta = datetime.datetime.now(UTC) - datetime.timedelta(days=400)
        TwoSteps.set(eta=eta).start()
        db.session.commit()
        assert [nudge.countdown for nudge in published] == [0.0]
        assert drain(app) == 2

    @pytest.mark.parametrize(("countdown", "rides"), [(0, True), (2.5, True), (60, False)])
    def test_countdown(
        self, app: Flask, published: list[Nudge], countdown: float, rides: bool
    ) -> None:
        run = TwoSteps.set(countdown=countdown).start()
        [many] = TwoSteps.set(countdown=countdown).start_many([{}])
        db.session.commit()
        assert run.due_at is not None
        delay = (run.due_at - run.created_at).total_seconds()
        assert delay == pytest.approx(countdown, abs=0.1)
        due_at = committed(app, sa.select(SequenceRun.due_at).where(SequenceRun.id == many))[0]
        assert abs(due_at - run.due_at) < datetime.timedelta(seconds=5)
        assert [nudge.countdown for nudge in published] == [countdown] * (2 if rides else 0)
        assert drain(app) == (4 if countdown == 0 else 0)
        assert drain(app, ignore_due=True) == (0 if countdown == 0 else 4)


class TestStartMany:
    def test_gives_the_ids_in_order(self, app: Flask, published: list[Nudge]) -> None:
        run_ids = TwoSteps.start_many({"n": n} for n in range(250))
        assert committed_runs(app) == []
        db.session.commit()
        rows = db.session.execute(sa.select(SequenceRun.id, SequenceRun.data)).all()
        data = {row.id: row.data for row in rows}
        assert [data[run_id] for run_id in run_ids] == [{"n": n} for n in range(250)]
        assert len(data) == 250
        assert len(set(db.session.scalars(sa.select(SequenceRun.uid)))) == 250
        assert [nudge.run_id for nudge in published] == run_ids[:101]  # the last says: more
        assert {nudge.version for nudge in published} == {0}
        unsent = sa.select(SequenceRun.id).where(SequenceRun.published_at.is_(None))
        assert sorted(db.session.scalars(unsent)) == run_ids[100:]

    def test_counts_what_else_the_commit_publishes(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        runs = [TwoSteps.start() for _ in range(60)]
        many = TwoSteps.start_many([{}] * 30)
        runs += [TwoSteps.start() for _ in range(60)]
        db.session.commit()
        ids = [run.id for run in runs]
        assert len(published) == 150
        assert sorted(nudge.run_id for nudge in published[:100]) == sorted(many + ids[:70])
        unsent = sa.select(SequenceRun.id).where(SequenceRun.published_at.is_(None))
        assert sorted(db.session.scalars(unsent)) == ids[70:]

    def test_five_thousand(self, app: Flask, published: list[Nudge]) -> None:
        sent: list[str] = []
        sa.event.listen(db.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        run_ids = TwoSteps.start_many([{"n": n, "text": "x" * 100} for n in range(5_000)])
        db.session.commit()
        assert len(set(run_ids)) == 5_000
        # SQLite, which has no way to a server, takes them one by one.
        assert len(sent) < 50 or db.engine.dialect.name == "sqlite"
        assert len(published) == 101
        last = db.session.get(SequenceRun, run_ids[-1])
        assert last is not None
        assert last.data["n"] == 4_999

    def test_large_data_fit_into_the_packets_of_the_server(self, app: Flask) -> None:
        with app.app_context():
            run_ids = TwoSteps.start_many([{"text": "x" * 1_000_000}] * 40)
            db.session.commit()
            assert len(run_ids) == 40

    def test_nothing(self, published: list[Nudge]) -> None:
        assert TwoSteps.start_many([]) == []

    def test_far_ones_are_left_to_the_sweep(self, published: list[Nudge]) -> None:
        TwoSteps.set(countdown=3600).start_many([{}, {}])
        db.session.commit()
        assert published == []

    def test_takes_no_key(self, published: list[Nudge]) -> None:
        with pytest.raises(InvalidOptionError, match="key"):
            TwoSteps.set(key="k").start_many([{}])

    def test_is_rolled_back(self, app: Flask, published: list[Nudge]) -> None:
        with db.session.begin_nested() as savepoint:
            TwoSteps.start_many([{}, {}])
            savepoint.rollback()
        kept = TwoSteps.start_many([{}])
        db.session.commit()
        assert [nudge.run_id for nudge in published] == kept == committed_runs(app)


class TestKey:
    def test_is_held_by_one_active_run(self, app: Flask, published: list[Nudge]) -> None:
        first = TwoSteps.set(key="order-17").start(note="first")
        assert first.id is not None
        assert TwoSteps.set(key="order-17").start(note="second") is first
        db.session.commit()
        again = TwoSteps.set(key="order-17").start(note="third")
        assert again is first
        assert again.data == {"note": "first"}
        other = TwoSteps.set(key="order-18").start()
        fails = Fails.set(key="order-17").start()
        db.session.commit()
        assert len({first.id, other.id, fails.id}) == 3
        assert [nudge.run_id for nudge in published] == [first.id, other.id, fails.id]

    def test_is_free_after_a_rollback(self, app: Flask, published: list[Nudge]) -> None:
        first = TwoSteps.set(key="k").start()
        db.session.rollback()
        second = TwoSteps.set(key="k").start()
        assert second is not first
        db.session.commit()
        assert committed_runs(app) == [second.id]

    def test_is_free_after_the_finish(self, app: Flask, published: list[Nudge]) -> None:
        first = TwoSteps.set(key="k").start(note="a")
        db.session.commit()
        drain(app)
        second = TwoSteps.set(key="k").start(note="b")
        db.session.commit()
        assert second.id != first.id
        assert second.data == {"note": "b"}
        assert first.key == second.key == "k"

    def test_is_free_after_a_cancel(self, app: Flask, published: list[Nudge]) -> None:
        first = TwoSteps.set(key="k").start()
        first.cancel()
        second = TwoSteps.set(key="k").start()
        db.session.commit()
        assert (first.status, second.status) == (Status.CANCELLED, Status.WAITING)
        assert first.id != second.id

    def test_is_kept_after_a_failure(self, app: Flask, published: list[Nudge]) -> None:
        first = Fails.set(key="k").start()
        db.session.commit()
        drain(app)
        assert first.status is Status.FAILED
        assert Fails.set(key="k").start() is first

    def test_is_compared_by_its_code_points(self, published: list[Nudge]) -> None:
        keys = ("k", "K", "ǩ", "k\u030c", "x" * 255, "😀" * 255, "a  b", "a b", "ß", "ss")
        runs = {key: TwoSteps.set(key=key).start() for key in keys}
        db.session.commit()
        db.session.expire_all()
        assert [run.key for run in runs.values()] == list(keys)
        assert len({run.id for run in runs.values()}) == len(keys)
        assert all(TwoSteps.set(key=key).start() is run for key, run in runs.items())

    def test_an_error_of_the_callers_own_reaches_the_caller(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        db.session.add(Effect(id=1))
        db.session.commit()
        db.session.expunge_all()
        db.session.add(Effect(id=1))
        with pytest.raises(sa.exc.IntegrityError, match="effects"):
            TwoSteps.set(key="k").start()
        db.session.rollback()
        TwoSteps.set(key="k").start()
        db.session.commit()
        assert len(committed_runs(app)) == 1

    def test_an_error_of_a_listener_reaches_the_caller(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        db.session.add(Effect(id=1))
        db.session.commit()
        db.session.expunge_all()
        session = db.session()

        @sa.event.listens_for(session, "before_flush")
        def audit(session: t.Any, *_: object) -> None:
            if any(isinstance(row, SequenceRun) for row in session.new):
                session.add(Effect(id=1))

        with pytest.raises(sa.exc.IntegrityError, match="effects"):
            TwoSteps.set(key="k").start()
        sa.event.remove(session, "before_flush", audit)

    def test_another_constraint_of_the_table_reaches_the_caller(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        refuse = sa.text(
            "CREATE TRIGGER refuse BEFORE INSERT ON sequence_runs BEGIN"
            " SELECT RAISE(ABORT, 'refused'); END"
        )
        if db.engine.dialect.name != "sqlite":
            refuse = sa.text("ALTER TABLE sequence_runs ADD CONSTRAINT refused CHECK (version < 0)")
        db.session.execute(refuse)
        db.session.commit()
        with pytest.raises(sa.exc.DBAPIError, match="refused"):
            TwoSteps.set(key="k").start()

    def test_that_an_open_transaction_holds(
        self, make_app: MakeApp, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "LOCK_SECONDS", 1)
        options = {"connect_args": {"timeout": 1}} if "sqlite" in database_url else {}
        app = make_app(database_url, SQLALCHEMY_ENGINE_OPTIONS=options)
        with app.app_context():
            holder = db.session()
            TwoSteps.set(key="k").start()
            with app.app_context():
                if "sqlite" not in database_url:
                    db.session.add(Effect(note="mine"))
                started = datetime.datetime.now(UTC)
                with pytest.raises(KeyBusyError, match="TwoSteps with the key 'k'"):
                    TwoSteps.set(key="k").start()
                waited = datetime.datetime.now(UTC) - started
                assert datetime.timedelta(seconds=0.5) < waited < datetime.timedelta(seconds=4)
                holder.rollback()
                db.session.add(Effect(note="later"))
                run = TwoSteps.set(key="k").start()
                db.session.commit()
                assert committed_runs(app) == [run.id]
                mine = [] if "sqlite" in database_url else ["mine"]
                assert committed_notes(app) == [*mine, "later"]
                assert _lock_bound(database_url) in (None, _lock_bound(database_url, fresh=True))

    @pytest.mark.parametrize("read_first", [False, True], ids=["", "read first"])
    def test_of_twenty_concurrent_transactions(
        self, make_app: MakeApp, database_url: str, read_first: bool
    ) -> None:
        app = make_app(database_url, SQLALCHEMY_ENGINE_OPTIONS=_engine_options(database_url))
        _start_twenty(app, read_first)

    def test_of_twenty_under_snapshot_isolation(self, make_app: MakeApp, mariadb_url: str) -> None:
        with sa.create_engine(mariadb_url, poolclass=NullPool).connect() as connection:
            known = connection.exec_driver_sql("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'")
            if not known.all():
                pytest.skip("this server has no innodb_snapshot_isolation")
        options = _engine_options(mariadb_url)
        options["connect_args"] = {"init_command": "SET SESSION innodb_snapshot_isolation = ON"}
        _start_twenty(make_app(mariadb_url, SQLALCHEMY_ENGINE_OPTIONS=options), read_first=True)


def _engine_options(url: str) -> dict[str, t.Any]:
    more = {"connect_args": {"timeout": 30}} if "sqlite" in url else {}
    return {"pool_size": 45, **more}


def _lock_bound(url: str, *, fresh: bool = False) -> t.Any:
    """Read how long a statement waits for a lock, on the session's connection or a new one."""
    if "sqlite" in url:
        return None
    read = "SHOW lock_timeout" if "postgresql" in url else "SELECT @@innodb_lock_wait_timeout"
    if not fresh:
        return db.session.connection().exec_driver_sql(read).scalar_one()
    with sa.create_engine(url, poolclass=NullPool).connect() as connection:
        return connection.exec_driver_sql(read).scalar_one()


def _start_twenty(app: Flask, read_first: bool) -> None:
    record_published(app)
    together = threading.Barrier(20)

    def start(number: int) -> int:
        with app.app_context():
            if read_first:
                db.session.scalars(sa.select(SequenceRun.id)).all()
            together.wait(30)
            db.session.add(Effect(note=str(number)))
            run = TwoSteps.set(key="k").start(note=str(number))
            run_id, sequence = run.id, run.sequence
            assert sequence == "TwoSteps"
            db.session.commit()
            assert run.key == "k"
            return run_id

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        run_ids = set(pool.map(start, range(20)))
    assert list(run_ids) == committed_runs(app)
    assert sorted(committed_notes(app), key=int) == [str(number) for number in range(20)]


def test_large_data_is_warned_of_once(sqlite_app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    name = f"Large{uuid.uuid4().hex}"
    sequence = make_sequence(lambda step: None, name=name)
    for _ in range(2):
        sequence.start(fill="a" * WARN_BYTES)
        sequence.start_many([{"fill": "a" * WARN_BYTES}] * 2)
        db.session.commit()
    assert caplog.text.count(f"The data of {name} takes") == 1
