"""What a keeper has at hand."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from kombu import Queue

from flask_sequence.rows import own_connections
from flask_sequence.rows.own_connections import TimeIsUp
from flask_sequence.runtime import runtime_of
from flask_sequence.worker import post
from flask_sequence.worker.post import NoConnectionError, Post
from tests.support.keeping import FakeConsumer

if t.TYPE_CHECKING:
    from flask import Flask

MakeApp = t.Callable[..., "Flask"]


def test_the_queues_are_those_that_the_worker_consumes(make_app: MakeApp, sqlite_url: str) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    consumer = FakeConsumer("celery")
    own = Post(runtime, consumer)
    # A message to another queue makes Celery count it among the app's queues.
    runtime.celery.amqp.queues["mail"]
    assert set(own.queues) == {"celery"}
    consumer.task_consumer = None  # while it connects again
    assert set(own.queues) == {"celery"}
    consumer.task_consumer = SimpleNamespace(queues=[Queue("celery"), Queue("added")])
    assert set(own.queues) == {"celery", "added"}


def test_a_database_that_takes_no_connection_is_told_apart(
    make_app: MakeApp, sqlite_url: str
) -> None:
    app = make_app(sqlite_url)
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine

    def refuse(*_: object) -> None:
        raise RuntimeError("no token")

    own = Post(runtime_of(app), FakeConsumer())
    own.begin(seconds=60.0, rows=1)
    sa.event.listen(engine, "do_connect", refuse)
    with pytest.raises(NoConnectionError, match="no token"), own.connect():
        pass
    sa.event.remove(engine, "do_connect", refuse)
    with own.connect() as connection:
        assert connection.scalar(sa.select(1)) == 1
    own.disconnect()


def test_no_transaction_begins_when_the_time_of_a_pass_is_up(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(post, "time", SimpleNamespace(monotonic=lambda: now))
    own = Post(runtime_of(make_app(sqlite_url)), FakeConsumer())
    monkeypatch.setattr(own_connections, "time", SimpleNamespace(monotonic=lambda: now))
    own.begin(seconds=10.0, rows=1)
    with own.connect():
        now += 10.5
    with pytest.raises(TimeIsUp), own.connect():
        pytest.fail("It must not begin.")
    own.disconnect()


def test_what_was_told_is_remembered_but_not_for_ever(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "MOST_TOLD", 2)
    own = Post(runtime_of(make_app(sqlite_url)), FakeConsumer())
    assert [own.is_new(what) for what in "aabbab"] == [True, False, True, False, False, False]
    assert own.is_new("c")
    assert not own.is_new("b")
    assert own.is_new("a")
