"""Sequences, and what shows what became of a start, for the tests of starting and committing."""

from __future__ import annotations

import contextlib
import typing as t

import sqlalchemy as sa
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from flask_sequence import BaseSequence, SequenceRun, Step
from flask_sequence.runtime import Nudge, Runtime, runtime_of
from tests.support.application import Effect


def session() -> Session:
    """Give the session at hand of the application that is active."""
    database: SQLAlchemy = current_app.extensions["sqlalchemy"]
    return database.session()


class Record(Step):
    """Insert a row into ``effects``."""

    def perform(self) -> None:
        effect = Effect(run_id=self.run.id, step=type(self).__name__, note=self.data.get("note"))
        session().add(effect)


class First(Record):
    """The first step."""


class Second(Record):
    """The second one."""


class TwoSteps(BaseSequence):
    """Two steps that insert a row each."""

    steps = (First, Second)


class Failing(Step):
    """Fails at once."""

    autoretry_for = ()

    def perform(self) -> None:
        raise ValueError("no")


class Fails(BaseSequence):
    """One step, which fails."""

    steps = (Failing,)


def record_published(app: Flask) -> list[Nudge]:
    """Keep what an application publishes instead of sending it, and give the growing list.

    What is published must be committed by then, for all to see.
    """
    published: list[Nudge] = []

    def publish(runtime: Runtime, nudges: t.Sequence[Nudge]) -> None:
        assert {nudge.run_id for nudge in nudges} <= set(committed_runs(app))
        published.extend(nudges)

    runtime_of(app).publish = publish
    return published


def committed(app: Flask, statement: sa.Select[t.Any]) -> list[t.Any]:
    """Read what is committed, on a connection of its own."""
    engine = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"], poolclass=NullPool)
    with engine.connect() as connection:
        return list(connection.execute(statement).scalars())


def committed_runs(app: Flask) -> list[int]:
    """Give the ids of the committed runs."""
    return committed(app, sa.select(SequenceRun.id).order_by(SequenceRun.id))


def committed_notes(app: Flask) -> list[str]:
    """Give the notes of the committed rows of ``effects``."""
    return committed(app, sa.select(Effect.note).order_by(Effect.id))


@contextlib.contextmanager
def wrapped_engine(app: Flask, database: SQLAlchemy) -> t.Iterator[None]:
    """Put a connection with an open transaction in the place of an engine, as fixtures do."""
    engines = database._app_engines[app]
    engine = engines[None]
    with engine.connect() as connection:
        transaction = connection.begin()
        engines[None] = connection  # type: ignore[assignment]
        try:
            yield
        finally:
            database.session.remove()
            transaction.rollback()
            engines[None] = engine


@contextlib.contextmanager
def wrapped_session(app: Flask, database: SQLAlchemy) -> t.Iterator[None]:
    """Put a session on a connection with an open transaction in the place of ``db.session``."""
    original = database.session
    with database.engine.connect() as connection:
        transaction = connection.begin()
        factory: t.Any = sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
        database.session = scoped_session(factory)
        try:
            yield
        finally:
            database.session.remove()
            transaction.rollback()
            database.session = original
