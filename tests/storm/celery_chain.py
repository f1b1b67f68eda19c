"""The same work as a plain Celery chain, whose tasks retry by themselves and commit a row each."""

from __future__ import annotations

import os
import random
import time
import typing as t

from celery import Celery, chain
from flask import Flask
from kombu.exceptions import OperationalError

from flask_sequence.rows.models import join_metadata
from tests.storm.checker import LOOP, LOOPS, STEPS
from tests.storm.place import FOLDER, Place, this_place
from tests.storm.tables import db, first_data, write_effect


def make_flask(place: Place) -> Flask:
    """Make an application without flask-sequence.

    :param place: The storm.
    """
    app = Flask("storm")
    app.config["SQLALCHEMY_DATABASE_URI"] = place.database
    db.init_app(app)
    join_metadata(db, None)  # one of the tables refers to runs
    return app


def make_celery(place: Place) -> Celery:
    """Make a Celery app, by choice with what Celery advises for tasks that must not be lost.

    :param place: The storm.
    """
    app = Celery("storm", set_as_current=False)  # the other contender has its own
    app.conf.update(place.celery or {}, task_ignore_result=True)
    if place.options.acks_late:
        app.conf.update(
            task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
        )
    retrying: dict[str, t.Any] = {
        "autoretry_for": (Exception,),
        "max_retries": 25,
        "default_retry_delay": 0.2,
    }
    register: t.Any = app.task
    register(perform, name="perform", bind=True, **retrying)
    return app


def perform(task: t.Any, data: dict[str, t.Any], step: int) -> dict[str, t.Any]:
    """Do what the step of the same number does in a sequence."""
    data = dict(data)  # a retry is sent with the arguments as they are then
    this_place().note("attempt", data["marker"], step)
    loops = LOOPS if step == LOOP else 1
    with flask_app.app_context():
        for index in range(loops):
            seconds = random.uniform(0, this_place().options.step_seconds / loops)
            time.sleep(seconds)
            data["value"] = write_effect(data["marker"], data["value"], step, index)
            db.session.flush()
            time.sleep(seconds)
        if data["trouble"] == step and task.request.retries == 0:
            this_place().note("raised", data["marker"], step)
            raise ValueError(data["marker"])
        db.session.commit()
    return data


def send(marker: str) -> bool:
    """Send a chain, and tell whether the broker has taken it.

    :param marker: Which run.
    """
    task = celery_app.tasks["perform"]
    first = task.s(first_data(marker, this_place().options.seed), 1)
    try:
        chain(first, *(task.s(step) for step in range(2, STEPS + 1))).apply_async()
    except OperationalError:
        return False
    return True


if FOLDER in os.environ:
    flask_app = make_flask(this_place())
    celery_app = make_celery(this_place())
