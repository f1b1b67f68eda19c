"""The publisher, without a broker: when it gives a connection up, and what it says."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
import redis
from kombu import Producer
from redis.client import Pipeline

from flask_sequence.broker.line import collect
from flask_sequence.broker.publisher import Publisher
from flask_sequence.runtime import Nudge, runtime_of
from tests.support import services
from tests.support.logs import level_of

if t.TYPE_CHECKING:
    from flask import Flask

NUDGE = Nudge(run_id=1, version=0, label="S.a", queue="q")


@pytest.fixture
def publisher(make_app: t.Callable[..., Flask], sqlite_url: str) -> Publisher:
    return Publisher(runtime_of(make_app(sqlite_url)))


def cut(*_: object) -> t.NoReturn:
    raise OSError("cut")


def test_a_publisher_that_was_never_used_has_nothing_to_give_up(publisher: Publisher) -> None:
    publisher.close()
    publisher.disown()
    assert publisher._line._connection is None


def test_a_depth_that_cannot_be_read_gives_the_connection_up(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publisher.publish([NUDGE]) == 1
    assert publisher._line._connection is not None
    monkeypatch.setattr(publisher._line, "_depth", cut)
    with pytest.raises(OSError, match="cut"):
        publisher.depth(["q"])
    assert publisher._line._connection is None
    assert publisher.publish([NUDGE]) == 1


def test_a_broker_that_stays_away_is_named_once(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(publisher._line, "_send_once", cut)
        assert [publisher.publish([NUDGE], rest=False) for _ in range(3)] == [0, 0, 0]
    assert caplog.text.count("The broker does not take messages (OSError: cut)") == 1
    assert level_of(caplog, "The broker does not take messages") == "WARNING"
    assert publisher.publish([NUDGE]) == 0  # it rests
    assert publisher.publish([NUDGE], rest=False) == 1


def test_a_publisher_may_outlive_its_application(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "app", lambda: None)
    assert publisher.publish([NUDGE]) == 1


@pytest.fixture
def redis_publisher(make_app: t.Callable[..., Flask], sqlite_url: str) -> t.Iterator[Publisher]:
    broker = services.make_broker("redis")
    publisher = Publisher(runtime_of(make_app(sqlite_url, CELERY=broker.config())))
    yield publisher
    publisher.close()
    broker.clear()


def depth(publisher: Publisher) -> int:
    return publisher.depth([publisher.celery.amqp.queues["q"]])


def test_many_nudges_travel_together(
    redis_publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(Producer, "batch"):
        pytest.skip("kombu before 5.7 sends each message by itself")
    sizes: list[int] = []
    execute = Pipeline.execute

    def counted(pipeline: t.Any, *args: t.Any) -> t.Any:
        if pipeline.command_stack[0][0][0] == "LPUSH":
            sizes.append(len(pipeline))
            if sizes == [100, 50]:
                raise redis.ConnectionError("reset")
        return execute(pipeline, *args)

    monkeypatch.setattr(Pipeline, "execute", counted)
    many = [dataclasses.replace(NUDGE, run_id=number) for number in range(150)]
    assert redis_publisher.publish(many) == 150
    assert sizes == [100, 50, 50]  # what was cut is sent again, once
    assert depth(redis_publisher) == 150


def test_nudges_that_do_not_get_through_together_are_left_to_the_sweep(
    redis_publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reset(*_: object) -> t.NoReturn:
        raise redis.ConnectionError("reset")

    monkeypatch.setattr(Pipeline, "execute", reset)
    assert redis_publisher.publish([NUDGE] * 2) == 0
    assert "The broker does not take messages" in caplog.text
    monkeypatch.undo()
    assert redis_publisher.publish([NUDGE] * 2, rest=False) == 2


def test_a_message_that_cannot_be_made_keeps_no_other_back(
    redis_publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    queues: t.Any = redis_publisher.celery.amqp.queues
    queues.create_missing = False
    queues.add("q")
    unknown = dataclasses.replace(NUDGE, queue="nowhere")
    assert redis_publisher.publish([NUDGE, unknown, NUDGE]) == 2
    assert depth(redis_publisher) == 2
    assert level_of(caplog, "S.a cannot be published: QueueNotFound") == "ERROR"


def test_redis_is_asked_by_one_client(
    redis_publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[t.Any] = []
    init = redis.Redis.__init__

    def counted(client: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        made.append(client)
        init(client, *args, **kwargs)

    assert redis_publisher.publish([NUDGE]) == 1
    monkeypatch.setattr(redis.Redis, "__init__", counted)
    assert [redis_publisher.publish([NUDGE]) for _ in range(3)] == [1, 1, 1]
    assert made == []
    assert depth(redis_publisher) == 4


def test_a_connection_that_cannot_be_closed_is_left() -> None:
    class Connection:
        collect = staticmethod(lambda **_: cut())

    collect(Connection())
