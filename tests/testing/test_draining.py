from __future__ import annotations

import inspect
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_sequence import BaseSequence, SequenceRun, SetupError, Status, Step
from flask_sequence.rows.models import runs
from flask_sequence.testing import drain
from tests.support.application import Base, Effect, db
from tests.support.starts import (
    Fails,
    TwoSteps,
    committed_notes,
    record_published,
    session,
    wrapped_engine,
    wrapped_session,
)

MakeApp = t.Callable[..., Flask]


class FailsTwice(Step):
    """Fails at its first two attempts, and leaves nothing of them."""

    def perform(self) -> None:
        session().add(Effect(note=f"attempt {self.attempt}"))
        session().flush()
        if self.attempt < 3:
            raise ValueError


class Retried(BaseSequence):
    """A step that needs three attempts."""

    steps = (FailsTwice,)


class Again(Step):
    """Starts its own sequence again."""

    def perform(self) -> None:
        Endless.start()


class Endless(BaseSequence):
    """Never ends."""

    steps = (Again,)


@pytest.fixture(params=["plain", "wrapped engine", "wrapped session"])
def any_app(
    request: pytest.FixtureRequest, make_app: MakeApp, database_url: str
) -> t.Iterator[Flask]:
    """An application in an app context, as tests have it, and in both usual fixtures."""
    options = {"join_transaction_mode": "create_savepoint"}
    database = SQLAlchemy(model_class=Base, session_options=options)
    app = make_app(database_url, database=database)
    record_published(app)
    with app.app_context():
        if request.param == "plain":
            yield app
        else:
            wrap = wrapped_engine if request.param == "wrapped engine" else wrapped_session
            with wrap(app, database):
                yield app


def notes() -> list[str]:
    return list(session().scalars(sa.select(Effect.note).order_by(Effect.id)))


class TestDrain:
    def test_performs_what_is_due(self, any_app: Flask) -> None:
        first, failed = TwoSteps.start(note="a"), Fails.start(note="b")
        session().commit()
        assert drain(any_app) == 3
        assert (first.status, failed.status) == (Status.FINISHED, Status.FAILED)
        assert notes() == ["a", "a"]
        assert drain(any_app) == 0

    def test_leaves_retries_for_their_time(self, any_app: Flask) -> None:
        run = Retried.start()
        session().commit()
        assert drain(any_app) == 1
        assert (run.status, run.error) == (Status.WAITING, "ValueError")
        session().commit()
        assert drain(any_app, ignore_due=True) == 2
        assert run.status is Status.FINISHED
        assert notes() == ["attempt 3"]
        assert [row.status for row in run.step_runs] == ["retry", "retry", "finished"]

    def test_keeps_the_session_of_the_test(self, any_app: Flask) -> None:
        run = TwoSteps.start()
        effect = Effect(note="mine")
        session().add(effect)
        session().commit()
        mine = session()
        pending = Effect(note="pending")
        mine.add(pending)
        drain(any_app)
        assert session() is mine
        assert run in mine
        assert pending in mine.new
        mine.rollback()
        assert run.status is Status.FINISHED

    def test_reads_afresh_what_the_test_has_loaded(self, sqlite_app: Flask) -> None:
        run = TwoSteps.start()
        effect = Effect(note="mine")
        db.session.add(effect)
        db.session.commit()
        standing = [run.status, effect.note]  # loads both
        effect.note = "changed"
        drain(sqlite_app)
        assert [standing, run.status] == [[Status.WAITING, "mine"], Status.FINISHED]
        assert effect.note == "changed"

    def test_a_failure_of_a_step_takes_back_nothing_of_the_test(self, any_app: Flask) -> None:
        session().add(Effect(note="mine"))
        run = Fails.start()
        session().commit()
        drain(any_app)
        assert run.status is Status.FAILED
        assert notes() == ["mine"]

    def test_gives_up_at_max_steps(self, sqlite_app: Flask) -> None:
        Endless.start()
        db.session.commit()
        with pytest.raises(AssertionError, match=r"7 attempts and run \d+ is still due"):
            drain(sqlite_app, max_steps=7)
        assert db.session.scalar(sa.select(sa.func.count(SequenceRun.id))) == 8

    def test_gives_up_after_a_thousand_by_default(self) -> None:
        assert inspect.signature(drain).parameters["max_steps"].default == 1000

    def test_exactly_max_steps_are_enough(self, sqlite_app: Flask) -> None:
        TwoSteps.start()
        db.session.commit()
        assert drain(sqlite_app, max_steps=2) == 2

    def test_ignores_the_time_if_asked_to(self, sqlite_app: Flask) -> None:
        TwoSteps.set(countdown=3600).start(note="later")
        db.session.commit()
        assert drain(sqlite_app) == 0
        assert drain(sqlite_app, ignore_due=True) == 2
        assert committed_notes(sqlite_app) == ["later", "later"]

    def test_leaves_alone_what_it_does_not_know(self, sqlite_app: Flask) -> None:
        known, unknown = TwoSteps.start(), TwoSteps.start()
        db.session.commit()
        changed = sa.update(runs).where(runs.c.id == unknown.id)
        db.session.execute(changed.values(step="gone"))
        db.session.commit()
        assert drain(sqlite_app) == 2
        assert (known.status, unknown.status) == (Status.FINISHED, Status.WAITING)

    def test_outside_of_an_app_context(self, make_app: MakeApp, sqlite_url: str) -> None:
        app = make_app(sqlite_url)
        with app.app_context():
            TwoSteps.start(note="a")
            db.session.commit()
        assert drain(app) == 2

    def test_deletes_at_once_what_is_not_to_be_kept(
        self, make_app: MakeApp, database_url: str
    ) -> None:
        app = make_app(database_url, SEQUENCE_RETENTION=0)
        with app.app_context():
            record_published(app)
            TwoSteps.start()
            db.session.commit()
            assert drain(app) == 2
            assert db.session.scalars(sa.select(SequenceRun.id)).all() == []

    def test_without_the_extension(self) -> None:
        with pytest.raises(SetupError, match=r"init_app\(app\)"):
            drain(Flask("other"))
