"""What is listened to is kept to the engines of the runs."""

from __future__ import annotations

import re
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from flask_sequence import ReadOnlyError, Sequence, SequenceRun, SetupError, StepRun, StepStatus
from flask_sequence.rows.models import runs, step_runs
from flask_sequence.testing import drain
from tests.support.application import Base, Effect, db
from tests.support.starts import TwoSteps, committed, committed_notes, record_published

MakeApp = t.Callable[..., Flask]


class Own(DeclarativeBase):
    """The base of a stranger's models."""


class Note(Own):
    """A row of a stranger's."""

    __tablename__ = "sequence_notes"

    id: Mapped[int] = mapped_column(primary_key=True)


class TestStrangers:
    def test_a_savepoint_of_theirs_is_left_alone(self, sqlite_app: Flask, tmp_path: t.Any) -> None:
        TwoSteps.start()
        db.session.commit()
        engine = sa.create_engine(f"sqlite:///{tmp_path}/other.sqlite", poolclass=NullPool)
        sent: list[str] = []
        sa.event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        with engine.connect() as connection, connection.begin_nested():
            connection.exec_driver_sql("SELECT 1")
        with Session(engine) as session, session.begin_nested():
            session.scalars(sa.select(1)).all()
        assert [statement for statement in sent if statement.startswith("BEGIN")] == []

    def test_an_error_of_theirs_is_left_alone(self, sqlite_app: Flask, tmp_path: t.Any) -> None:
        TwoSteps.start()
        db.session.commit()
        engine = sa.create_engine(f"sqlite:///{tmp_path}/other.sqlite", poolclass=NullPool)
        with Session(engine) as session, pytest.raises(sa.exc.OperationalError, match="no such"):
            session.execute(sa.text("SELECT * FROM sequence_runs"))

    def test_a_bulk_method_of_theirs_is_left_alone(self, sqlite_app: Flask) -> None:
        engine = sa.create_engine("sqlite://")
        Own.metadata.create_all(engine)
        with Session(engine) as session:
            session.bulk_insert_mappings(sa.inspect(Note), [{}, {}])
            session.execute(sa.update(Note).values(id=Note.id + 10))
            session.query(Note).filter(Note.id == 11).delete()
            session.commit()
            assert session.scalars(sa.select(Note.id)).all() == [12]

    def test_nothing_is_listened_to_on_every_engine(self) -> None:
        """Of a process that has imported the package, and more."""
        plain = sa.create_engine("sqlite://")
        names = ("savepoint", "before_execute", "before_cursor_execute", "begin", "commit")
        listeners = [listener for name in names for listener in getattr(plain.dispatch, name)]
        listeners += list(plain.dialect.dispatch.handle_error)
        assert listeners == []


class TestOurs:
    @pytest.mark.parametrize("by", ["session", "bound session"])
    def test_a_savepoint_that_comes_first_begins_a_transaction(
        self, sqlite_app: Flask, by: str
    ) -> None:
        session = db.session() if by == "session" else Session(db.engine)
        with session.begin_nested():
            session.execute(sa.insert(Effect).values(note="mine", step=""))
        assert committed_notes(sqlite_app) == []
        session.rollback()
        assert committed_notes(sqlite_app) == []
        session.close()

    def test_an_engine_with_options_of_its_own_is_the_same(self, make_app: MakeApp) -> None:
        class Routing(FlaskSession):
            def get_bind(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
                return database.engine.execution_options(mine=True)

        database = SQLAlchemy(model_class=Base, session_options={"class_": Routing})
        with make_app("sqlite://", database=database).app_context():
            TwoSteps.start()
            with pytest.raises(SetupError, match="flask db upgrade"):
                database.session.flush()


WRITES: dict[str, t.Callable[[t.Any, SequenceRun], object]] = {
    "update": lambda s, run: s.execute(sa.update(SequenceRun).values(error="x")),
    "update of many": lambda s, run: s.execute(
        sa.update(SequenceRun), [{"id": run.id, "error": "x"}]
    ),
    "delete": lambda s, run: s.execute(sa.delete(SequenceRun).where(SequenceRun.id == run.id)),
    "insert": lambda s, run: s.execute(
        sa.insert(StepRun).values(run_id=run.id, step="x", attempt=1, status=StepStatus.FINISHED)
    ),
    "insert of many": lambda s, run: s.execute(
        sa.insert(StepRun),
        [{"run_id": run.id, "step": "x", "attempt": 1, "status": StepStatus.FINISHED}],
    ),
    "insert that returns": lambda s, run: s.scalars(
        sa.insert(StepRun).returning(StepRun.id),
        [{"run_id": run.id, "step": "x", "attempt": 1, "status": StepStatus.FINISHED}],
    ).all(),
    "query.update": lambda s, run: s.query(SequenceRun).update({"error": "x"}),
    "query.delete": lambda s, run: s.query(SequenceRun).filter_by(id=run.id).delete(),
    "bulk_update_mappings": lambda s, run: s.bulk_update_mappings(
        SequenceRun, [{"id": run.id, "error": "x"}]
    ),
    "bulk_insert_mappings": lambda s, run: s.bulk_insert_mappings(
        StepRun, [{"run_id": run.id, "step": "x", "attempt": 1, "status": StepStatus.FINISHED}]
    ),
    "bulk_save_objects": lambda s, run: s.bulk_save_objects(
        [StepRun(run_id=run.id, step="x", attempt=1, status=StepStatus.FINISHED)]
    ),
    "bulk_save_objects of a run": lambda s, run: s.bulk_save_objects([TwoSteps.start(note="x")]),
}


class TestWrites:
    @pytest.mark.parametrize("write", WRITES)
    def test_past_the_methods_are_refused(self, app: Flask, write: str) -> None:
        with app.app_context():
            record_published(app)
            run = TwoSteps.start()
            db.session.commit()
            with pytest.raises(ReadOnlyError, match="through the ORM|by hand"):
                WRITES[write](db.session, run)
            db.session.rollback()
            # None of it stays behind: what is ours goes on.
            TwoSteps.start()
            TwoSteps.start_many([{}])
            run.cancel()
            db.session.commit()
            assert committed(app, sa.select(runs.c.error)) == [None] * 3
            assert committed(app, sa.select(step_runs.c.id)) == []

    @pytest.mark.parametrize("write", ["update", "delete", "bulk_update_mappings"])
    def test_as_the_first_statement_of_an_application(
        self, make_app: MakeApp, sqlite_url: str, write: str
    ) -> None:
        with make_app(sqlite_url).app_context(), pytest.raises(ReadOnlyError):
            WRITES[write](db.session, SequenceRun(id=1))

    def test_as_the_first_statement_by_an_engine_that_was_put_in_place(
        self, make_app: MakeApp, sqlite_url: str
    ) -> None:
        with make_app(sqlite_url).app_context():
            engines: t.Any = db.engines
            engine, engines[None] = engines[None], sa.create_engine(sqlite_url)
            with pytest.raises(ReadOnlyError):
                WRITES["update"](db.session, SequenceRun(id=1))
            db.session.rollback()
            engines[None].dispose()
            engines[None] = engine

    def test_a_flush_that_had_nothing_to_do_does_not_hide_a_bulk_method(
        self, sqlite_app: Flask
    ) -> None:
        run = TwoSteps.start()
        effect = Effect(note="a")
        db.session.add(effect)
        db.session.commit()
        effect.note = str(effect.note)
        db.session.flush()
        with pytest.raises(ReadOnlyError):
            WRITES["bulk_update_mappings"](db.session, run)

    def test_of_rows_of_the_applications_own_are_left_alone(self, app: Flask) -> None:
        with app.app_context():
            record_published(app)
            run = TwoSteps.start()
            db.session.add_all([Effect(note="a"), Effect(note="b")])
            db.session.flush()
            session = db.session
            session.execute(sa.update(Effect).values(run_id=run.id))
            joined = sa.delete(Effect).where(
                Effect.note == "a",
                Effect.run_id.in_(sa.select(SequenceRun.id).where(SequenceRun.id == run.id)),
            )
            session.execute(joined, execution_options={"synchronize_session": False})
            session.bulk_insert_mappings(sa.inspect(Effect), [{"note": "c", "step": ""}])
            session.bulk_save_objects([Effect(note="d")])
            session.query(Effect).filter(Effect.note == "c").delete()
            session.commit()
            assert committed_notes(app) == ["b", "d"]

    def test_on_the_table_itself_are_let_through(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        db.session.commit()
        db.session.execute(sa.update(runs).values(error="mine"))
        db.session.commit()
        assert run.error == "mine"


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def committing_url(request: pytest.FixtureRequest) -> str:
    """The address of a database with all tables."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def _app_of(how: str, url: str, make_app: MakeApp) -> tuple[Flask, SQLAlchemy]:
    """Make an application whose driver commits by itself, in one of the ways to say so."""
    options: dict[str, t.Any] = {"isolation_level": "AUTOCOMMIT"}
    if how == "engine_options":
        database = SQLAlchemy(model_class=Base, engine_options=options)
        return make_app(url, database=database), database
    database = SQLAlchemy(model_class=Base)
    if how == "bind":
        binds = {None: {"url": url, **options}}
        return make_app(url, database=database, SQLALCHEMY_BINDS=binds), database
    assert how == "url"
    return make_app(f"{url}?autocommit=true", database=database), database


@pytest.mark.parametrize("how", ["engine_options", "bind", "url"])
def test_a_driver_that_commits_by_itself_is_refused_before_anything_is_written(
    make_app: MakeApp, committing_url: str, how: str
) -> None:
    if how == "url" and "mariadb" not in committing_url:
        pytest.skip("only PyMySQL takes this in its URL")
    app, database = _app_of(how, committing_url, make_app)
    sent: list[str] = []
    with app.app_context():
        sa.event.listen(
            database.engine, "before_cursor_execute", lambda *args: sent.append(args[2])
        )
        run = TwoSteps.start()
        with pytest.raises(SetupError, match="AUTOCOMMIT"):
            database.session.commit()
        database.session.rollback()
        for verb in (
            lambda: TwoSteps.set(key="k").start(),
            lambda: TwoSteps.start_many([{}]),
            run.cancel,
            run.retry,
        ):
            with pytest.raises(SetupError, match="AUTOCOMMIT"):
                verb()
            database.session.rollback()
    assert [statement for statement in sent if statement.startswith(("INSERT", "UPDATE"))] == []


@pytest.mark.parametrize(
    ("drivername", "cure"),
    [
        ("postgresql+asyncpg", "postgresql+psycopg://"),
        ("postgresql+psycopg_async", "postgresql+psycopg://"),
        ("postgresql+pg8000", "postgresql+psycopg://"),
        ("sqlite+aiosqlite", "sqlite://"),
        ("mysql+aiomysql", "mysql+pymysql://"),
        ("mysql+asyncmy", "mysql+pymysql://"),
        ("mysql+mysqlconnector", "mysql+pymysql://"),
        ("mariadb+mariadbconnector", "mariadb+pymysql://"),
        ("oracle+oracledb", "SQLite, PostgreSQL, MariaDB and MySQL"),
    ],
)
def test_a_driver_that_keeps_no_promise_is_refused(drivername: str, cure: str) -> None:
    app, database = Flask("drivers"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    database.init_app(app)
    url = sa.make_url(f"{drivername}://u@localhost/x")
    dialect = url.get_dialect()()
    with app.app_context():
        engines = t.cast("dict[t.Any, t.Any]", database.engines)
        engines[None] = sa.Engine(StaticPool(lambda: None), dialect, url)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=re.escape(cure)):
        Sequence(app)
    assert "sequence" not in app.extensions


def test_sqlite_whose_transactions_the_application_begins_is_taken(
    make_app: MakeApp, sqlite_url: str
) -> None:
    app = make_app(sqlite_url)
    with app.app_context():
        record_published(app)

        @sa.event.listens_for(db.engine, "connect")
        def switch_off(driver: t.Any, record: t.Any) -> None:
            driver.isolation_level = None

        @sa.event.listens_for(db.engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        TwoSteps.start()
        db.session.commit()
        assert drain(app) == 2
        assert len(committed_notes(app)) == 2
