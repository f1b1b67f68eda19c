"""What a keeper has at hand."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from kombu import Queue

from flask_sequence.runtime import runtime_of
from flask_sequence.worker.post import NoConnectionError, Post
from tests.support.keeping import FakeConsumer

if t.TYPE_CHECKING:
    from flask import Flask

MakeApp = t.Callable[..., "Flask"]


def test_the_queues_are_those_that_the_worker_consumes(make_app: MakeApp, sqlite_url: str) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    consumer = FakeConsumer("celery")
    post = Post(runtime, consumer)
    # A message to another queue makes Celery count it among the app's queues.
    runtime.celery.amqp.queues["mail"]
    assert set(post.queues) == {"celery"}
    consumer.task_consumer = None  # while it connects again
    assert set(post.queues) == {"celery"}
    consumer.task_consumer = SimpleNamespace(queues=[Queue("celery"), Queue("added")])
    assert set(post.queues) == {"celery", "added"}


def test_a_database_that_takes_no_connection_is_told_apart(
    make_app: MakeApp, sqlite_url: str
) -> None:
    app = make_app(sqlite_url)
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine

    def refuse(*_: object) -> None:
        raise RuntimeError("no token")

    post = Post(runtime_of(app), FakeConsumer())
    post.begin(seconds=60.0, rows=1)
    sa.event.listen(engine, "do_connect", refuse)
    with pytest.raises(NoConnectionError, match="no token"), post.connect():
        pass
    sa.event.remove(engine, "do_connect", refuse)
    with post.connect() as connection:
        assert connection.scalar(sa.select(1)) == 1
    post.disconnect()
