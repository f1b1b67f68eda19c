"""The application that tests run: a table for effects, and a factory.

It stands in a module so that a worker process can import it too. A test with models of its own
passes a ``SQLAlchemy()`` of its own: those on this one would stand in every test's database.
"""

from __future__ import annotations

import typing as t

from celery import Celery
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_sequence import Sequence

if t.TYPE_CHECKING:
    from pathlib import Path


class Base(DeclarativeBase):
    """The base of the tests' own models."""


db = SQLAlchemy(model_class=Base)


class Effect(db.Model):  # type: ignore[name-defined, misc]
    """What a step did. Nothing in it is unique, so that a double shows."""

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int | None]
    step: Mapped[str] = mapped_column(String(200), default="")
    note: Mapped[str] = mapped_column(String(200), default="")


def create_app(
    database_url: str,
    celery: Celery | t.Mapping[str, t.Any] | None = None,
    *,
    database: SQLAlchemy | None = None,
    instance_path: Path | str | None = None,
    **config: t.Any,
) -> Flask:
    """Make a Flask application with Flask-SQLAlchemy, Flask-Migrate and Sequence.

    :param database_url: The value of ``SQLALCHEMY_DATABASE_URI``.
    :param celery: A Celery application, or the value of ``CELERY``; None: the embedded broker.
    :param database: Another ``SQLAlchemy()`` than the one of this module.
    :param instance_path: The instance folder; the embedded broker keeps its messages there.
    :param config: More of ``app.config``.
    """
    database = database or db
    path = None if instance_path is None else str(instance_path)
    app = Flask("tests.support.application", instance_path=path)
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=database_url)
    app.config["SEQUENCE_PUBLISH"] = True
    app.config["SEQUENCE_BURST_SECONDS"] = 0  # one step for each nudge, unless a test asks for more
    app.config.update(config)
    if celery is not None and not isinstance(celery, Celery):
        app.config["CELERY"] = dict(celery)
    database.init_app(app)
    Migrate(app, database)
    Sequence(app, celery=celery if isinstance(celery, Celery) else None)
    return app


def close_app(app: Flask) -> None:
    """Close every connection that the pools of an application hold."""
    with app.app_context():
        database: SQLAlchemy = app.extensions["sqlalchemy"]
        engines: t.Iterable[object] = database.engines.values()
        for engine in engines:
            if isinstance(engine, Engine):  # a test may have put a connection there
                engine.dispose()
