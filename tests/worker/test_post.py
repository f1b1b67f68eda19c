"""What a keeper has at hand."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

from kombu import Queue

from flask_sequence.runtime import runtime_of
from flask_sequence.worker.post import Post
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
