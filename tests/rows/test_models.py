from __future__ import annotations

import datetime
import decimal
import itertools
import json
import subprocess
import sys
import textwrap
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from flask_sequence import (
    ConfigError,
    ReadOnlyError,
    Sequence,
    SequenceRun,
    SetupError,
    Status,
    StepRun,
    StepStatus,
)
from flask_sequence.rows.models import Base, Worker
from flask_sequence.testing import drain
from tests.support.application import Effect, db
from tests.support.starts import Fails, TwoSteps, record_published
from tests.support.workers import ROOT

MakeApp = t.Callable[..., Flask]
TABLES = {"sequence_runs", "sequence_step_runs", "sequence_workers"}


@pytest.fixture
def context(app: Flask) -> t.Iterator[Flask]:
    """``app``, inside an app context of it."""
    with app.app_context():
        record_published(app)
        yield app


@pytest.fixture
def sqlite_app(make_app: MakeApp, sqlite_url: str) -> t.Iterator[Flask]:
    """An application on SQLite, inside an app context of it."""
    app = make_app(sqlite_url)
    with app.app_context():
        record_published(app)
        yield app


class TestReadOnly:
    def test_a_changed_run(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start(a=1)
        db.session.commit()
        run.status = Status.FINISHED
        run.error = "mine"
        with pytest.raises(ReadOnlyError, match=r"(status, error|error, status).*run\.retry\(\)"):
            db.session.commit()
        db.session.rollback()
        assert run.status is Status.WAITING
        db.session.commit()

    def test_changed_data(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start(a={"b": 1})
        db.session.commit()
        with pytest.raises(ReadOnlyError, match="a step changes it, as self.data"):
            run.data["a"] = 2  # type: ignore[index]
        run.data["a"]["b"] = 2
        db.session.commit()
        db.session.expire_all()
        assert run.data == {"a": {"b": 1}}
        run.data = {"a": 2}
        with pytest.raises(ReadOnlyError, match="data"):
            db.session.commit()

    def test_the_same_value_is_no_change(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start(a=1)
        db.session.commit()
        run.data = dict(run.data)
        run.sequence = "TwoSteps" if run.sequence else ""
        db.session.add(Effect(note="mine"))
        db.session.commit()

    def test_a_deleted_run(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        db.session.commit()
        db.session.delete(run)
        with pytest.raises(ReadOnlyError, match=r"run\.cancel\(\)"):
            db.session.flush()
        db.session.rollback()
        assert db.session.get(SequenceRun, run.id) is run

    @pytest.mark.parametrize(
        "row",
        [
            lambda: SequenceRun(sequence="TwoSteps", step="First", queue="celery", data={}),
            lambda: StepRun(run_id=1, step="First", attempt=1, status=StepStatus.FINISHED),
            lambda: Worker(id="x", host="x", pid=1),
        ],
    )
    def test_a_row_added_by_hand(self, sqlite_app: Flask, row: t.Callable[[], Base]) -> None:
        db.session.add(row())
        with pytest.raises(ReadOnlyError, match=r"start\(\)"):
            db.session.flush()
        db.session.rollback()

    def test_a_changed_or_deleted_step_run(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        db.session.commit()
        drain(sqlite_app)
        run.step_runs[0].error = "mine"
        with pytest.raises(ReadOnlyError, match="error of a StepRun"):
            db.session.commit()
        db.session.rollback()
        db.session.delete(run.step_runs[0])
        with pytest.raises(ReadOnlyError, match="StepRun"):
            db.session.commit()
        db.session.rollback()
        assert len(run.step_runs) == 2

    def test_the_history_is_not_written_through_its_run(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        db.session.commit()
        drain(sqlite_app)
        first = run.step_runs[0]
        run.step_runs.clear()
        db.session.commit()
        assert first.run is run
        assert len(run.step_runs) == 2


class TestColumns:
    def test_history(self, context: Flask) -> None:
        before = datetime.datetime.now(datetime.UTC)
        run = TwoSteps.start(note="a")
        failed = Fails.start()
        db.session.commit()
        drain(context)
        db.session.rollback()
        assert (run.status, run.step, failed.status) == (Status.FINISHED, "Second", Status.FAILED)
        assert [(row.step, row.attempt, row.status) for row in run.step_runs] == [
            ("First", 1, StepStatus.FINISHED),
            ("Second", 1, StepStatus.FINISHED),
        ]
        [attempt] = failed.step_runs
        assert attempt.run is failed
        assert attempt.status is StepStatus.FAILED
        assert attempt.error == failed.error == "ValueError: no"
        assert "raise ValueError" in str(attempt.traceback)
        assert run.started_at is not None
        assert run.finished_at is not None
        times = [run.created_at, run.started_at, run.finished_at, attempt.finished_at]
        for time in times:
            assert time.utcoffset() == datetime.timedelta()
            assert abs(time - before) < datetime.timedelta(seconds=30)
        assert times[:3] == sorted(times[:3])

    def test_times_keep_their_microseconds(self, context: Flask) -> None:
        zone = datetime.timezone(datetime.timedelta(hours=5, minutes=45))
        eta = datetime.datetime(2031, 2, 3, 1, 2, 3, 999_999, tzinfo=zone)
        run = TwoSteps.set(eta=eta).start()
        db.session.commit()
        assert run.due_at == eta
        assert run.due_at.tzinfo is datetime.UTC
        found = db.session.scalars(sa.select(SequenceRun.id).where(SequenceRun.due_at == eta)).all()
        assert found == [run.id]
        assert (
            db.session.scalars(sa.select(SequenceRun.id).where(SequenceRun.due_at > eta)).all()
            == []
        )

    def test_a_status_of_a_newer_release_is_read_as_its_word(self, context: Flask) -> None:
        run = TwoSteps.start()
        db.session.commit()
        db.session.execute(sa.text("UPDATE sequence_runs SET status = 'asleep'"))
        db.session.commit()
        assert [run.status for run in db.session.scalars(sa.select(SequenceRun))] == ["asleep"]
        assert not isinstance(run.status, Status)

    def test_the_status_is_stored_as_a_word(self, context: Flask) -> None:
        TwoSteps.start()
        db.session.commit()
        words = db.session.execute(sa.text("SELECT status FROM sequence_runs")).scalars().all()
        assert words == ["waiting"]
        for word in (Status.WAITING, "waiting"):
            query = sa.select(SequenceRun).where(SequenceRun.status == word)
            assert db.session.scalars(query).one().status is Status.WAITING
        with pytest.raises(sa.exc.StatementError, match="going"):
            db.session.scalars(sa.select(SequenceRun).where(SequenceRun.status == "going"))

    def test_data_can_be_queried(self, context: Flask) -> None:
        run = TwoSteps.start(email="joel@example.com", n=3, inner={"a": "b"})
        TwoSteps.start(email="other@example.com", n=4)
        db.session.commit()
        data = SequenceRun.data
        for condition in (
            data["email"].as_string() == "joel@example.com",
            data["n"].as_integer() == 3,
            data[("inner", "a")].as_string() == "b",
        ):
            assert db.session.scalars(sa.select(SequenceRun.id).where(condition)).all() == [run.id]
        notes = sa.select(data[("inner", "a")].as_string()).order_by(SequenceRun.id)
        assert db.session.scalars(notes).all() == ["b", None]

    def test_the_applications_own_json_is_passed_over(
        self, make_app: MakeApp, database_url: str
    ) -> None:
        options = {
            "json_serializer": lambda value: json.dumps({"mine": value}),
            "json_deserializer": lambda text: json.loads(text, parse_float=decimal.Decimal),
        }
        app = make_app(database_url, SQLALCHEMY_ENGINE_OPTIONS=options)
        with app.app_context():
            run = TwoSteps.set(priority=3).start(price=1.5)
            db.session.commit()
            assert run.data == {"price": 1.5}
            assert type(run.data["price"]) is float
            assert run.options == {"priority": 3}

    def test_a_run_shows_where_it_stands(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        assert repr(run) == "<SequenceRun TwoSteps waiting>"
        db.session.flush()
        assert repr(run) == f"<SequenceRun {run.id} TwoSteps waiting>"
        run_id = run.id
        db.session.commit()
        assert repr(run) == (
            f"<SequenceRun {run_id} (expired by a commit: run.status loads it again)>"
        )


def _own(**options: t.Any) -> SQLAlchemy:
    class OwnBase(DeclarativeBase):
        metadata = sa.MetaData(**options)

    return SQLAlchemy(model_class=OwnBase)


_numbers = itertools.count()


def _message(database: SQLAlchemy, form: str) -> t.Any:
    """Define a model with a foreign key and a relationship to a run, by its class or by name."""
    target: t.Any = SequenceRun.id if form == "class" else "sequence_runs.id"
    related: t.Any = SequenceRun if form == "class" else "SequenceRun"
    # A backref stays on SequenceRun for as long as the process lives.
    backref = f"messages_{next(_numbers)}"

    class Message(database.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "messages"
        id = mapped_column(sa.Integer, primary_key=True)
        run_id = mapped_column(sa.ForeignKey(target, ondelete="SET NULL"))
        text = mapped_column(sa.String(50))
        run = orm.relationship(related, backref=backref)

        @property
        def of_run(self) -> t.Any:
            return getattr(self.run, backref)

    return Message


class TestOwnModels:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("form", ["class", "string"])
    def test_point_at_runs(
        self, make_app: MakeApp, empty_database_url: str, form: str, when: str
    ) -> None:
        database = _own()
        if when == "before":
            message_class = _message(database, form)
        app = make_app(empty_database_url, database=database)
        record_published(app)
        if when == "after":
            message_class = _message(database, form)
        with app.app_context():
            names = [table.name for table in database.metadata.sorted_tables]
            assert names.index("sequence_runs") < names.index("messages")
            database.create_all()
            session = database.session
            run = TwoSteps.start()
            message = message_class(run=run, text="a")
            session.add(message)
            session.commit()
            assert message.run_id == run.id

            message.of_run.append(message_class(text="b"))
            session.commit()
            message.of_run.remove(message)
            session.commit()
            assert message.run is None
            assert session.scalars(sa.select(message_class.text).join(SequenceRun)).all() == ["b"]
            loaded = session.scalars(sa.select(message_class).join(message_class.run)).one()
            session.delete(loaded)
            session.commit()
            database.drop_all()
            assert sa.inspect(database.engine).get_table_names() == []

    def test_may_have_names_like_ours(self, make_app: MakeApp, sqlite_url: str) -> None:
        database = _own()
        make_app(sqlite_url, database=database)

        class Worker(database.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "people"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Desk(database.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "desks"
            id: Mapped[int] = mapped_column(primary_key=True)
            worker_id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"))
            worker = orm.relationship("Worker")

        assert Desk.worker.property.mapper.class_ is Worker

    @pytest.mark.parametrize("configured", [False, True])
    def test_may_have_the_names_of_our_models(
        self, make_app: MakeApp, sqlite_url: str, configured: bool
    ) -> None:
        database = _own()
        make_app(sqlite_url, database=database)
        if configured:  # as by a first query, before a module with more models is imported
            _message(database, "string")
            t.cast(t.Any, database.Model).registry.configure(cascade=True)
        for name in ("StepRun", "SequenceRun"):
            columns: dict[str, t.Any] = {
                "__tablename__": f"my_{name}",
                "id": sa.Column(sa.Integer, primary_key=True),
            }
            mine = type(name, (database.Model,), columns)
            columns = {
                "__tablename__": f"child_{name}",
                "id": sa.Column(sa.Integer, primary_key=True),
                "mine_id": sa.Column(sa.ForeignKey(f"my_{name}.id")),
                "mine": orm.relationship(name),
            }
            child: t.Any = type(f"Child{name}", (database.Model,), columns)
            assert child.mine.property.mapper.class_ is mine

    def test_with_a_table_named_like_ours(self, make_app: MakeApp, sqlite_url: str) -> None:
        database = _own()
        sa.Table("sequence_runs", database.metadata, sa.Column("id", sa.Integer))
        with pytest.raises(SetupError, match="sequence_runs.*give it another name"):
            make_app(sqlite_url, database=database)

    def test_that_were_reflected_first(self, sqlite_url: str) -> None:
        database, app = _own(), Flask("reflecting")
        app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url
        database.init_app(app)
        with app.app_context():
            database.reflect()
        with pytest.raises(SetupError, match=r"db\.reflect\(\) after sequence\.init_app"):
            Sequence(app)

    def test_that_are_reflected_afterwards(self, make_app: MakeApp, sqlite_url: str) -> None:
        database = _own()
        with make_app(sqlite_url, database=database).app_context():
            database.reflect()
            TwoSteps.start()
            database.session.commit()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_in_a_schema(self, make_app: MakeApp, empty_database_url: str, when: str) -> None:
        if not empty_database_url.startswith("postgresql"):
            pytest.skip("only PostgreSQL has schemas in a database")

        class InSchema(DeclarativeBase):
            metadata = sa.MetaData(schema="shop")

        database = SQLAlchemy(model_class=InSchema)
        if when == "before":
            message_class = _message(database, "string")
        app = make_app(empty_database_url, database=database)
        if when == "after":
            message_class = _message(database, "string")
        with app.app_context():
            database.session.execute(sa.text("CREATE SCHEMA shop"))
            database.session.commit()
            database.create_all()
            run = TwoSteps.start()
            database.session.add(message_class(run=run, text="a"))
            database.session.commit()
            look = sa.inspect(database.engine)
            assert look.get_table_names("shop") == ["messages"]
            assert set(look.get_table_names()) == TABLES
            (key,) = look.get_foreign_keys("messages", "shop")
            assert key["referred_table"] == "sequence_runs"

    def test_that_are_dataclasses(self, make_app: MakeApp, empty_database_url: str) -> None:
        database = _own()

        class Order(MappedAsDataclass, database.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(init=False, primary_key=True)
            run_id: Mapped[int | None] = mapped_column(
                sa.ForeignKey("sequence_runs.id"), init=False
            )
            run: Mapped[SequenceRun] = orm.relationship()

        app = make_app(empty_database_url, database=database)
        with app.app_context():
            database.create_all()
            run = TwoSteps.start(a=1)
            order = Order(run=run)
            database.session.add(order)
            database.session.commit()
            assert order.run_id == run.id
            assert order.run.data == {"a": 1}

    def test_on_a_base_with_its_own_constructor(self, make_app: MakeApp, tmp_path: Path) -> None:
        class Strict(DeclarativeBase):
            def __init__(self, name: str) -> None:
                self.name = name

        database = SQLAlchemy(model_class=Strict)
        app = make_app(f"sqlite:///{tmp_path}/strict.sqlite", database=database)
        record_published(app)
        with app.app_context():
            database.create_all()
            run = Fails.start(a=1)
            database.session.commit()
            assert drain(app) == 1
            assert run.status is Status.FAILED

    def test_with_a_naming_convention(self, make_app: MakeApp, empty_database_url: str) -> None:
        convention = {
            "ix": "IX_%(column_0_label)s",
            "uq": "UQ_%(table_name)s_%(column_0_name)s",
            "fk": "FK_%(table_name)s_%(column_0_name)s",
            "pk": "PK_%(table_name)s",
        }
        database = _own(naming_convention=convention)
        message_class = _message(database, "string")
        app = make_app(empty_database_url, database=database)
        with app.app_context():
            database.create_all()
            inspector = sa.inspect(database.engine)
            names = {index["name"] for index in inspector.get_indexes("sequence_runs")}
            assert {"ix_sequence_runs_due", "ix_sequence_runs_running"} <= names
            [key] = inspector.get_foreign_keys("messages")
            [constraint] = message_class.__table__.foreign_key_constraints
            assert constraint.name == "FK_messages_run_id"
            assert key["referred_table"] == "sequence_runs"
            database.session.add(message_class(run=TwoSteps.start()))
            database.session.commit()

    def test_stand_in_the_metadata_of_each_database(
        self, make_app: MakeApp, sqlite_url: str
    ) -> None:
        first, second = _own(), _own()
        make_app(sqlite_url, database=first)
        make_app(sqlite_url, database=first)
        make_app(sqlite_url, database=second)
        for database in (first, second):
            assert set(database.metadata.tables) >= TABLES
            assert database.metadata.tables["sequence_runs"] is SequenceRun.__table__

    def test_that_point_at_a_run_do_not_keep_it_from_its_end(
        self, make_app: MakeApp, empty_database_url: str
    ) -> None:
        database = _own()
        message_class = _message(database, "class")
        app = make_app(empty_database_url, database=database, SEQUENCE_RETENTION=0)
        with app.app_context():
            database.create_all()
            message = message_class(run=Fails.start())
            database.session.add(message)
            database.session.commit()
            assert drain(app) == 1
            database.session.rollback()
            assert message.run.status is Status.FAILED


class TestBindKey:
    def test_that_is_no_bind(self, make_app: MakeApp, sqlite_url: str) -> None:
        with pytest.raises(ConfigError, match="SQLALCHEMY_BINDS"):
            make_app(sqlite_url, SEQUENCE_BIND_KEY="runs")

    def test_a_second_one_in_the_process(self, make_app: MakeApp, sqlite_url: str) -> None:
        make_app(sqlite_url)
        with pytest.raises(SetupError, match="SEQUENCE_BIND_KEY is 'runs', but None"):
            make_app(
                sqlite_url,
                database=_own(),
                SEQUENCE_BIND_KEY="runs",
                SQLALCHEMY_BINDS={"runs": sqlite_url},
            )

    def test_keeps_the_runs_in_their_bind(self, tmp_path: t.Any) -> None:
        # In a process of its own: this one keeps its runs in the default bind.
        script = f"""
            import sqlalchemy as sa
            from flask import Flask
            from flask_sqlalchemy import SQLAlchemy
            from flask_sequence import Sequence, SequenceRun, BaseSequence, step
            from flask_sequence.testing import drain

            app, db = Flask("bound", instance_path={str(tmp_path)!r}), SQLAlchemy()
            app.config.update(
                SQLALCHEMY_DATABASE_URI="sqlite:///{tmp_path}/main.sqlite",
                SQLALCHEMY_BINDS={{"runs": "sqlite:///{tmp_path}/runs.sqlite"}},
                SEQUENCE_BIND_KEY="runs",
            )

            class Note(db.Model):
                __bind_key__ = "runs"
                id = db.Column(db.Integer, primary_key=True)
                run_id = db.Column(db.ForeignKey("sequence_runs.id"))
                run = db.relationship("SequenceRun")

            db.init_app(app)
            Sequence(app)

            @step
            def count(data):
                data["n"] += 1

            class Counts(BaseSequence):
                steps = (count,)

            with app.app_context():
                db.create_all()
                assert sa.inspect(db.engines[None]).get_table_names() == []
                assert "sequence_runs" in sa.inspect(db.engines["runs"]).get_table_names()
                note = Note(run=Counts.start(n=1))
                db.session.add(note)
                keyed = Counts.set(key="k").start(n=5)
                many = Counts.start_many([{{"n": 2}}])
                db.session.commit()
                assert drain(app) == 3
                assert note.run.data == {{"n": 2}}
                assert note.run.wait(1) == keyed.wait(1) == "finished"
        """
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
        subprocess.run(command, check=True, cwd=ROOT)


def test_a_second_extension_is_refused(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    with pytest.raises(SetupError, match="already"):
        Sequence(app)
