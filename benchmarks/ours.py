"""flask-sequence, as its README says."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contender import Contender, Place, bench_rows
from flask_sequence import BaseSequence, Sequence, SequenceRun, Status, step

db = SQLAlchemy()
LENGTHS = (1, 10, 100, 1000)
KEPT = 10
"""How many steps of ``Keeping`` leave the data as they are."""


@functools.cache
def _place() -> Place:
    return Place.of_worker()


def count_up(data: t.Any) -> None:
    data["number"] += 1


def insert(data: t.Any) -> None:
    data["number"] += 1
    db.session.execute(sa.insert(bench_rows).values(number=data["number"]))


def keep(data: t.Any) -> None:
    """Leave the data as they are."""


def begin(data: t.Any) -> None:
    _place().note_begin()


def end(data: t.Any) -> None:
    _place().note_end()


def sequence(name: str, *work: t.Callable[[t.Any], None]) -> type[BaseSequence]:
    """Make a sequence of functions, of which some may be the same."""
    steps = [step(name=f"s{number}")(each) for number, each in enumerate(work, 1)]
    return type(name, (BaseSequence,), {"steps": steps})


def sequence_of(length: int, rows: bool) -> type[BaseSequence]:
    """Make a sequence of many steps; the last one notes the end."""
    work = insert if rows else count_up

    def last(data: t.Any) -> None:
        work(data)
        end(data)

    return sequence(f"Bench{'Rows' if rows else 'Empty'}{length}", *[work] * (length - 1), last)


SEQUENCES = {(length, rows): sequence_of(length, rows) for length in LENGTHS for rows in (0, 1)}
Beginning = sequence("Beginning", begin)
Keeping = sequence("Keeping", *[keep] * KEPT, end)
Changing = sequence("Changing", *[count_up] * KEPT, end)


def create_app(place: Place | None = None) -> Flask:
    """Make the application; a worker finds its place in the environment."""
    place = place or Place.of_worker()
    app = Flask("bench", instance_path=place.folder)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=place.database,
        TESTING=True,
        SEQUENCE_PUBLISH=True,
        **place.settings,
    )
    if place.broker is not None:
        app.config["CELERY"] = place.broker
    db.init_app(app)
    Migrate(app, db)
    Sequence(app)
    return app


class FlaskSequence(Contender):
    """Everything by default."""

    name = "flask-sequence"
    configuration = "flask sequence worker -c N; everything by default."

    def prepare(self) -> None:
        super().prepare()
        self.app = create_app(self.place)
        with self.app.app_context():
            db.create_all()

    def commands(self) -> list[list[str]]:
        app = "benchmarks.ours:create_app"
        return [["-m", "flask", "--app", app, "sequence", "worker", *self.place.worker_options]]

    def begin(self, count: int, steps: int) -> None:
        self.start(SEQUENCES[steps, self.place.rows], count, number=0)

    def start(self, kind: type[BaseSequence], count: int, **data: t.Any) -> None:
        """Start runs, each in a transaction of its own."""
        with self.app.app_context():
            for _ in range(count):
                kind.start(**data)
                db.session.commit()

    def is_done(self, count: int) -> bool:
        with self.app.app_context():
            left = sa.select(sa.func.count()).where(
                SequenceRun.status.in_((Status.WAITING, Status.RUNNING))
            )
            return db.session.scalar(left) == 0


class WithoutBursts(FlaskSequence):
    """One message for each step."""

    name = "flask-sequence, no bursts"
    configuration = "SEQUENCE_BURST_SECONDS = 0, else as above."

    def __init__(self, place: Place) -> None:
        settings = {**place.settings, "SEQUENCE_BURST_SECONDS": 0}
        super().__init__(dataclasses.replace(place, settings=settings))
