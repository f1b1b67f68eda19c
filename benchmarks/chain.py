"""Celery chains, as Celery's and Flask's documentation set them up."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import sqlalchemy as sa
from celery import Celery, Task, chain
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contender import PLACE, Contender, Place, bench_rows
from flask_sequence.broker import embedded_config

db = SQLAlchemy()


class FlaskTask(Task):  # type: ignore[type-arg]
    """Flask's documentation, "Background Tasks with Celery"."""

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        with flask_app.app_context():
            return self.run(*args, **kwargs)


def make_flask(place: Place) -> Flask:
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = place.database
    db.init_app(app)
    return app


def make_celery(place: Place, late: bool) -> Celery:
    app = Celery("bench", set_as_current=False)  # other contenders have their own
    broker = place.broker or embedded_config(Path(place.folder) / "chain")
    app.conf.update(broker, task_ignore_result=True, task_acks_late=late)
    if late:
        app.conf.worker_prefetch_multiplier = 1
    app.task(count_up, name="count_up")
    app.task(insert, name="insert", base=FlaskTask)
    app.task(note_begin, name="note_begin")
    return app


def count_up(number: int, last: bool = False) -> int:
    if last:
        Place.of_worker().note_end()
    return number + 1


def insert(number: int, last: bool = False) -> int:
    db.session.execute(sa.insert(bench_rows).values(number=number))
    db.session.commit()
    return count_up(number, last)


def note_begin() -> None:
    Place.of_worker().note_begin()


if PLACE in os.environ:  # in a worker
    flask_app = make_flask(Place.of_worker())
    celery_app = make_celery(Place.of_worker(), late=bool(os.environ.get("BENCH_LATE")))


class Chain(Contender):
    """A bare chain, which keeps nothing."""

    name = "Celery chain"
    late: t.ClassVar[bool] = False
    inserts: t.ClassVar[bool] = False
    scenarios = frozenset({"empty"})
    configuration = "task_ignore_result, no result backend, prefork with N processes."

    def prepare(self) -> None:
        super().prepare()
        self.celery = make_celery(self.place, self.late)

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "BENCH_LATE": "1" * self.late}

    def commands(self) -> list[list[str]]:
        app = "benchmarks.chain:celery_app"
        return [["-m", "celery", "-A", app, "worker", *self.place.worker_options]]

    def begin(self, count: int, steps: int) -> None:
        task = self.celery.tasks["insert" if self.inserts else "count_up"]
        between = [task.s() for _ in range(steps - 2)]
        first = [task.s(0)] if steps > 1 else []
        last = task.s(last=True) if steps > 1 else task.s(0, last=True)
        work = chain(*first, *between, last)
        for _ in range(count):
            work.apply_async()

    @property
    def inserts_rows(self) -> bool:
        return self.inserts


class LateChain(Chain):
    """Late acknowledgement: what Celery advises for tasks that must not be lost."""

    name = "Celery chain, acks_late"
    late = True
    configuration = "task_acks_late, worker_prefetch_multiplier = 1; else as the chain."


class RowChain(Chain):
    """A chain whose tasks each commit a row."""

    name = "Celery chain, a row each"
    inserts = True
    scenarios = frozenset({"empty", "rows"})
    configuration = "Tasks insert a row and commit, in Flask's documented context task."


class LateRowChain(RowChain):
    """The same, with late acknowledgement."""

    name = "Celery chain, a row each, acks_late"
    late = True
    configuration = "task_acks_late, worker_prefetch_multiplier = 1; else as the chain with rows."
