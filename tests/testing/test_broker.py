"""What the tests of an application send to its broker."""

from __future__ import annotations

import typing as t

import pytest
from flask import Flask
from kombu import Queue

from flask_sequence import celery_app
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.services import Broker, make_broker
from tests.support.starts import TwoSteps
from tests.support.workers import Worker

MakeApp = t.Callable[..., Flask]

WORKER = """
    from tests.support import starts
    from tests.support.application import create_app

    app = create_app({url!r}, {celery!r}, instance_path={instance!r}, **{settings!r})
"""


@pytest.fixture
def redis() -> t.Iterator[Broker]:
    """A real broker."""
    broker = make_broker("redis")
    yield broker
    broker.clear()


def sent(app: Flask, queue: str) -> int:
    """Start a run, and count the messages that came of it."""
    with app.app_context():
        TwoSteps.start()
        TwoSteps.start_many([{}])
        db.session.commit()
    with celery_app(app).connection_for_read() as connection:
        bound: t.Any = Queue(queue, channel=connection.default_channel)
        return int(bound.queue_declare().message_count)


@pytest.mark.parametrize(
    ("testing", "publish", "expected"),
    [(True, None, 0), (True, True, 2), (True, False, 0), (False, None, 2), (False, False, 0)],
)
def test_messages_are_sent_where_they_are_asked_for(
    make_app: MakeApp,
    sqlite_url: str,
    redis: Broker,
    testing: bool,
    publish: bool | None,
    expected: int,
) -> None:
    app = make_app(sqlite_url, redis.config(), TESTING=testing, SEQUENCE_PUBLISH=publish)
    assert sent(app, redis.queue) == expected
    assert drain(app) == 4


def test_it_is_asked_when_it_publishes(make_app: MakeApp, sqlite_url: str, redis: Broker) -> None:
    """As in a test that sets it on the application which a factory has made."""
    app = make_app(sqlite_url, redis.config(), TESTING=False, SEQUENCE_PUBLISH=None)
    app.testing = True
    assert sent(app, redis.queue) == 0


def test_eager_mode_performs_all_the_same(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url, {"task_always_eager": True}, SEQUENCE_PUBLISH=None)
    with app.app_context():
        run = TwoSteps.start()
        db.session.commit()
        assert run.status.value == "finished"


def test_a_worker_sends_in_any_case(
    make_app: MakeApp,
    start_worker: t.Callable[..., Worker],
    tmp_path: t.Any,
    sqlite_url: str,
    redis: Broker,
) -> None:
    settings = {"SEQUENCE_PUBLISH": None, "SEQUENCE_SWEEP_SECONDS": 60, "TESTING": True}
    app = make_app(sqlite_url, redis.config(), **{**settings, "SEQUENCE_PUBLISH": True})
    place = {"url": sqlite_url, "celery": redis.config(), "instance": str(tmp_path / "instance")}
    start_worker(WORKER.format(settings=settings, **place), "-c", "1")
    with app.app_context():
        run = TwoSteps.start()
        db.session.commit()
        assert run.wait(10).value == "finished"  # by a message for each step, and no sweep
