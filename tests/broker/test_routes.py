"""Where nudges go under every form of Celery's routes and queues."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from flask import Flask
from kombu import Exchange, Queue

from flask_sequence import SetupError, celery_app
from flask_sequence.broker import embedded_config
from flask_sequence.rows.models import FORMAT
from flask_sequence.runtime import TASK, mark_of
from tests.support.application import db
from tests.support.services import Broker, make_broker
from tests.support.starts import TwoSteps

MakeApp = t.Callable[..., Flask]


class Chooser:
    """Routers that choose a queue for our task alone, as functions and in the way before Celery 4.

    :param queue: The queue.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue

    def by_function(
        self, name: str, args: t.Any, kwargs: t.Any, options: t.Any, task: t.Any
    ) -> t.Any:
        return {"queue": self.queue} if task.name == name == TASK else None

    def route_for_task(self, task: str, args: t.Any, kwargs: t.Any) -> dict[str, t.Any]:
        return {"queue": self.queue}


def nowhere(*args: t.Any, **kwargs: t.Any) -> None:
    """A router that leaves every task to the others."""


def routes(queue: str) -> dict[str, t.Any]:
    """Give every form of ``task_routes`` that names a queue."""
    elsewhere = {"exchange": "elsewhere", "routing_key": "elsewhere"}
    topic = Queue(queue, Exchange(f"{queue}_media", type="topic"), routing_key="media.#")
    return {
        "for all": {"*": {"queue": queue}},
        "by name": {"flask_sequence.*": queue},
        "a list of pairs": ([("shop.*", {"queue": "a"}), (TASK, {"queue": queue})],),
        "a list of dicts": ({"shop.*": "a"}, {"flask_*": queue}),
        "a function": Chooser(queue).by_function,
        "a list of functions": (nowhere, Chooser(queue).by_function),
        "a class": Chooser(queue),
        "kombu's queue": {"*": {"queue": topic}},
        "an exchange, too": {"*": {**elsewhere, "queue": queue}},
    }


def defaults(queue: str) -> dict[str, dict[str, t.Any]]:
    """Give settings under which the task stays in Celery's default queue."""
    elsewhere = {"exchange": "elsewhere", "routing_key": "elsewhere"}
    return {
        "options for all": {"task_routes": {"*": {"priority": 5}}},
        "others only": {"task_routes": {"shop.*": "a"}},
        "a function that chooses nothing": {"task_routes": lambda *a, **k: {}},
        "a function by its path": {"task_routes": (f"{__name__}.nowhere",)},
        "an exchange": {"task_routes": {"*": elsewhere}},
        "queues": {"task_queues": [Queue(f"{queue}_other"), Queue(queue)]},
        "queues without it": {"task_queues": [Queue(f"{queue}_other")]},
        "no others": {"task_queues": [Queue(queue)], "task_create_missing_queues": False},
        "a topic": {
            "task_default_exchange": f"{queue}_all",
            "task_default_exchange_type": "topic",
        },
    }


def arrived(app: Flask, queue: str) -> dict[str, t.Any]:
    """Take a message out of a queue."""
    with celery_app(app).connection_for_read() as connection:
        bound: t.Any = Queue(queue, channel=connection.default_channel)
        message = bound.get(no_ack=True)
        assert message is not None
        kwargs: dict[str, t.Any] = message.decode()[1]
        return kwargs


@pytest.mark.parametrize("form", routes(""))
def test_a_nudge_goes_to_the_queue_of_its_route(
    configure: MakeApp, broker: Broker, form: str
) -> None:
    queue = broker.queue_named("chosen")
    check(configure(task_routes=routes(queue)[form]), queue)


@pytest.mark.parametrize("form", defaults(""))
def test_a_nudge_without_one_goes_to_the_default_queue(
    configure: MakeApp, broker: Broker, form: str
) -> None:
    broker.queue_named("other")
    check(configure(**defaults(broker.queue)[form]), broker.queue)


@pytest.mark.parametrize("form", routes(""))
def test_a_queue_of_the_step_goes_before_every_route(
    configure: MakeApp, broker: Broker, form: str
) -> None:
    mine = broker.queue_named("mine")
    chosen = routes(broker.queue_named("chosen"))[form]
    check(configure(task_routes=chosen), mine, queue=mine)


@pytest.fixture
def configure(
    broker: Broker, make_app: MakeApp, sqlite_url: str, tmp_path: Path
) -> t.Iterator[MakeApp]:
    """The function that makes an application on a broker of each kind, with settings of Celery."""

    def make(**settings: t.Any) -> Flask:
        base = embedded_config(tmp_path / "broker") if broker.url is None else broker.config()
        apps.append(make_app(sqlite_url, {**(base or {}), **settings}))
        return apps[-1]

    apps: list[Flask] = []
    yield make
    for app in apps if broker.kind == "rabbitmq" else ():
        with celery_app(app).connection_for_write() as connection:
            for name in (f"{broker.queue}_all", f"{broker.queue}_chosen_media"):
                t.cast("t.Any", Exchange)(name, channel=connection.default_channel).delete()


def check(app: Flask, expected: str, **options: t.Any) -> None:
    """Start a run, and look where its nudge goes."""
    with app.app_context():
        run = TwoSteps.set(**options).start()
        db.session.commit()
        assert run.queue == expected
        sent = {"format": FORMAT, "id": run.id, "version": 0, "mark": mark_of(run.uid)}
        assert arrived(app, expected) == sent


def test_a_delay_is_not_left_to_quorum_queues(
    make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker("rabbitmq")
    for exchange_type in ("direct", "topic"):
        name = f"{broker.queue}_{exchange_type}"
        exchange = Exchange(broker.queue_named(exchange_type), type=exchange_type, auto_delete=True)
        arguments = {"x-queue-type": "quorum"}
        queue = Queue(name, exchange, routing_key=name, queue_arguments=arguments)
        app = make_app(sqlite_url, broker.config(task_queues=[queue], task_default_queue=name))
        with app.app_context():
            for delay in (0.5, 3, None):
                run = TwoSteps.set(countdown=delay).start()
                db.session.commit()
            assert arrived(app, name)["id"] == run.id
    broker.clear()
    assert caplog.records == []


def test_a_missing_queue_is_named(make_app: MakeApp, sqlite_url: str) -> None:
    settings = {
        "broker_url": "memory://",
        "task_queues": [Queue("celery")],
        "task_routes": {"*": "chosen"},
        "task_create_missing_queues": False,
    }
    app = make_app(sqlite_url, settings)
    with app.app_context(), pytest.raises(SetupError, match="'chosen' missing from task_queues"):
        TwoSteps.start()
