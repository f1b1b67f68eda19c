"""The application's own tables in a storm: starts, effects, papers. Nothing in them is unique."""

from __future__ import annotations

import random
import time
import typing as t

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun
from tests.storm.checker import first_value, next_value
from tests.storm.place import Place
from tests.support.application import create_app


class Base(DeclarativeBase):
    """The base of these models."""


db = SQLAlchemy(model_class=Base)


class StormStart(db.Model):  # type: ignore[name-defined, misc]
    """A row that a starter writes in the transaction that starts a run."""

    __tablename__ = "storm_starts"

    id: Mapped[int] = mapped_column(primary_key=True)
    marker: Mapped[str] = mapped_column(sa.String(50))
    at: Mapped[float] = mapped_column(sa.Double, default=time.time)


class StormEffect(db.Model):  # type: ignore[name-defined, misc]
    """What a step did."""

    __tablename__ = "storm_effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    marker: Mapped[str] = mapped_column(sa.String(50))
    step: Mapped[int]
    loop: Mapped[int]
    value: Mapped[int] = mapped_column(sa.BigInteger)
    at: Mapped[float] = mapped_column(sa.Double, default=time.time)


class StormPaper(db.Model):  # type: ignore[name-defined, misc]
    """A row that refers to a run: its starter's, with step 0, a step's, or a stranger's."""

    __tablename__ = "storm_papers"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("sequence_runs.id", ondelete="SET NULL"), index=True
    )
    marker: Mapped[str] = mapped_column(sa.String(50))
    step: Mapped[int] = mapped_column(default=0)
    loop: Mapped[int] = mapped_column(default=0)

    run: Mapped[SequenceRun | None] = relationship(SequenceRun)


LOCK_WAIT = {
    "postgresql": ("options", "-c lock_timeout={}s"),
    "mariadb": ("init_command", "SET SESSION innodb_lock_wait_timeout = {}"),
}
"""The argument for the driver that bounds how long a statement waits for a lock."""


def make_app(place: Place, **arguments: t.Any) -> Flask:
    """Make the application of a storm.

    :param place: The storm.
    :param arguments: Arguments for the driver.
    """
    instance, wait = f"{place.folder}/instance", place.options.lock_wait
    if wait and place.options.database in LOCK_WAIT:
        name, text = LOCK_WAIT[place.options.database]
        arguments[name] = text.format(wait)
    config = {**place.settings, "SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": arguments}}
    return create_app(place.database, place.celery, database=db, instance_path=instance, **config)


def make_tables(place: Place) -> None:
    """Create all tables.

    :param place: The storm.
    """
    make_app(place)  # makes the tables known to the metadata
    db.metadatas[None].create_all(sa.create_engine(place.database, poolclass=NullPool))


def first_data(marker: str, seed: int) -> dict[str, t.Any]:
    """Give the data that a run begins with: also where, if at all, it fails on purpose.

    :param marker: The run.
    :param seed: The storm's.
    """
    chance = random.Random(f"{seed} {marker}")
    return {
        "marker": marker,
        "value": first_value(marker),
        "cursor": 0,
        "trouble": chance.choice((0, 0, 0, 1, 2, 3, 4, 5)),
        "asks": chance.random() < 0.5,
        "swallows": chance.random() < 0.3,
    }


def write_effect(marker: str, value: int, step: int, index: int, run_id: int | None = None) -> int:
    """Add an effect to the session, and return the value that it makes.

    :param marker: The run.
    :param value: The value before.
    :param step: The number of the step.
    :param index: Which turn of its loop.
    :param run_id: The run that a paper refers to; None: there are no runs.
    """
    value = next_value(value, step, index)
    db.session.add(StormEffect(marker=marker, step=step, loop=index, value=value))
    if run_id is not None:
        db.session.add(StormPaper(run_id=run_id, marker=marker, step=step, loop=index))
    return value
