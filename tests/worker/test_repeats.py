"""A nudge that comes again while its worker has it in hand."""

from __future__ import annotations

import datetime
import json
import typing as t
from types import SimpleNamespace

import pytest
from celery.worker import state
from flask import Flask
from kombu import Message

from flask_sequence.broker.line import MORE
from flask_sequence.runtime import TASK, runtime_of
from flask_sequence.worker.repeats import _NudgeRequest
from flask_sequence.worker.task import find_celery

LATER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


class Receiver:
    """Receives nudges as Celery's consumer does."""

    def __init__(self, app: Flask) -> None:
        self._celery = find_celery(app)
        self.worker = t.cast("t.Any", SimpleNamespace(more_due=False))
        runtime_of(app).worker = self.worker
        self.acknowledged: list[str] = []

    def receive(
        self, version: int = 1, *, id: str = "n", more: bool = False, **header: t.Any
    ) -> _NudgeRequest:
        nudge = {"format": 1, "id": 1, "version": version}
        sent = self._celery.amqp.as_task_v2(id, TASK, kwargs=nudge, **header)
        request = _NudgeRequest(
            Message(
                body=json.dumps(sent.body),
                headers=sent.headers | t.cast("t.Any", {MORE: True} if more else {}),
                content_type="application/json",
                content_encoding="utf-8",
            ),
            on_ack=lambda *_: self.acknowledged.append(id),
            app=self._celery,
            task=self._celery.tasks[TASK],
        )
        state.task_reserved(request)
        return request


@pytest.fixture
def receiver(make_app: t.Callable[..., Flask], sqlite_url: str) -> t.Iterator[Receiver]:
    state.reset_state()
    yield Receiver(make_app(sqlite_url))
    state.reset_state()


@pytest.mark.parametrize("id", ["n", "sent again"])
def test_a_repeated_nudge_is_done_at_once(receiver: Receiver, id: str) -> None:
    first, second = receiver.receive(), receiver.receive(id=id)
    assert not first.revoked()
    assert second.revoked()
    assert receiver.acknowledged == [id]
    assert set(state.reserved_requests) == {first}
    assert state.requests["n"] is first
    assert not first.revoked()


@pytest.mark.parametrize("other", [{"version": 2}, {"retries": 1}, {"eta": LATER}])
def test_another_nudge_is_not(receiver: Receiver, other: dict[str, t.Any]) -> None:
    first, second = receiver.receive(), receiver.receive(**other)
    assert not first.revoked()
    assert not second.revoked()
    assert receiver.acknowledged == []


def test_one_that_comes_after_the_first_is_done_is_not(receiver: Receiver) -> None:
    first = receiver.receive()
    assert not first.revoked()
    state.task_ready(first)
    assert not receiver.receive().revoked()


def test_one_that_was_revoked_stays_revoked(receiver: Receiver) -> None:
    request = receiver.receive()
    state.revoked.add("n")
    assert request.revoked()
    assert not receiver.receive(id="sent again").revoked()


def test_the_task_receives_by_it(receiver: Receiver) -> None:
    assert receiver._celery.tasks[TASK].Request == f"{_NudgeRequest.__module__}:_NudgeRequest"


@pytest.mark.parametrize("more", [False, True])
def test_a_nudge_tells_the_keeper_of_more_when_it_is_performed(
    receiver: Receiver, more: bool
) -> None:
    request = receiver.receive(more=more)
    assert not receiver.worker.more_due
    assert not request.revoked()
    assert receiver.worker.more_due is more


def test_nudges_of_the_first_message_protocol_are_told_apart_too(receiver: Receiver) -> None:
    first, second, other = (receiver.receive(1), receiver.receive(1), receiver.receive(2))
    for request in (first, second, other):
        # As Celery's strategy makes it.
        args, kwargs, embed = json.loads(request.body)
        t.cast("t.Any", request)._body = (args, kwargs, embed)
    assert [request.revoked() for request in (first, second, other)] == [False, True, False]
