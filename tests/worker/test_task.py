"""The Celery task: its registration, its messages, and what a broker that is down costs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import subprocess
import sys
import time
import typing as t
import zlib

import pytest
import redis
import sqlalchemy as sa
from celery import Celery, Task
from kombu import Queue

from flask_sequence import BaseSequence, SequenceRun, SetupError, Status, Step, step
from flask_sequence.broker import embedded_config
from flask_sequence.broker.line import MORE
from flask_sequence.broker.publisher import Publisher, publisher_of
from flask_sequence.rows.models import FORMAT
from flask_sequence.runtime import TASK, Nudge, runtime_of
from flask_sequence.worker import task
from flask_sequence.worker.task import runtime_for
from tests.support.application import db
from tests.support.logs import level_of
from tests.support.servers import RedisServer, free_port
from tests.support.silence import SilentBroker
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.services import Broker

MakeApp = t.Callable[..., "Flask"]


@step
def first(data: dict[str, t.Any]) -> None:
    data["first"] = True


@step(queue="mail", priority=7, time_limit=60.5, soft_time_limit=50)
def limited(data: dict[str, t.Any]) -> None:
    data["limited"] = True


class TaskShort(BaseSequence):
    steps = (first,)


class TaskLimited(BaseSequence):
    steps = (limited,)


def _one_of_many(number: int) -> t.Any:
    return type(f"Step{number:04}", (Step,), {"perform": lambda self: None})


class TaskLong0(BaseSequence):
    steps = tuple(_one_of_many(n) for n in range(1000))


def messages(celery: t.Any, queue: str = "celery") -> list[t.Any]:
    """Take all messages of a queue, without waiting."""
    found = []
    with celery.connection_for_read() as connection:
        bound = Queue(queue, channel=connection.default_channel)
        while (message := bound.get(no_ack=True)) is not None:
            found.append(message)
    return found


def started(app: Flask, sequence: t.Any = TaskShort, **options: t.Any) -> int:
    with app.app_context():
        run = sequence.set(**options).start()
        db.session.commit()
        return int(run.id)


@pytest.fixture
def file_app(make_app: MakeApp, sqlite_url: str, tmp_path: Path) -> MakeApp:
    """Makes an application with the embedded broker, and more of Celery's settings."""
    numbers = itertools.count()

    def make(**config: t.Any) -> Flask:
        folder = tmp_path / f"broker{next(numbers)}"
        return make_app(sqlite_url, {**embedded_config(folder), **config})

    return make


# Registration


def test_the_task_is_registered_in_an_application_that_is_finalised_already(
    make_app: MakeApp, sqlite_url: str
) -> None:
    celery = Celery("early", set_as_current=False, broker="memory://")
    celery.finalize()
    make_app(sqlite_url, celery)
    assert celery.tasks[TASK].app is celery


def test_the_task_is_registered_once_in_each_celery_app(make_app: MakeApp, sqlite_url: str) -> None:
    celeries = [Celery(f"c{n}", set_as_current=False, broker="memory://") for n in (1, 2)]
    for celery in celeries:
        make_app(sqlite_url, celery)
    for celery in celeries:
        assert [name for name in celery.tasks if "sequence" in name] == [TASK]
        assert celery.tasks[TASK].app is celery


def test_a_custom_base_of_tasks_is_not_ours(make_app: MakeApp, sqlite_url: str) -> None:
    called = []

    class Noisy(Task):  # type: ignore[type-arg]  # Task[...] needs Celery 5.7
        acks_late = True

        def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            called.append(self.name)
            return super().__call__(*args, **kwargs)

    celery = Celery("custom", set_as_current=False, task_cls=Noisy, broker="memory://")
    celery.conf.task_acks_late = True
    app = make_app(sqlite_url, celery)
    run_id = started(app)
    celery.tasks[TASK](format=FORMAT, id=run_id, version=0)
    assert not called
    assert celery.tasks[TASK].acks_late is False
    with app.app_context():
        assert db.session.get_one(SequenceRun, run_id).status is Status.FINISHED


def test_each_celery_app_performs_for_its_own_flask_app(
    make_app: MakeApp, sqlite_url: str, postgresql_url: str
) -> None:
    celeries = [Celery(f"c{n}", set_as_current=False, broker=f"memory://{n}") for n in (1, 2)]
    apps = [make_app(url, c) for url, c in zip((sqlite_url, postgresql_url), celeries, strict=True)]
    ids = [started(app) for app in apps]
    assert ids == [1, 1]
    celeries[1].tasks[TASK](format=FORMAT, id=1, version=0)
    found = []
    for app in apps:
        with app.app_context():
            found.append(db.session.get_one(SequenceRun, 1).status)
    assert found == [Status.WAITING, Status.FINISHED]


def test_the_newest_flask_app_of_a_celery_app_performs(make_app: MakeApp, sqlite_url: str) -> None:
    celery = Celery("shared", set_as_current=False, broker="memory://")
    make_app(sqlite_url, celery)
    newest = make_app(sqlite_url, celery)
    found = runtime_for(celery)
    assert found is not None
    assert found.app is newest


def test_looking_for_an_application_makes_no_celery_app(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    assert runtime_for(Celery("stranger", set_as_current=False)) is None
    assert "celery" not in app.extensions


def test_a_nudge_without_an_application_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    celery = Celery("stranger", set_as_current=False)
    celery.tasks[TASK](format=FORMAT, id=1, version=0)
    assert level_of(caplog, "no Sequence extension knows") == "ERROR"
    assert len(caplog.records) == 1


def test_something_else_in_the_place_of_celery_is_refused(
    make_app: MakeApp, sqlite_url: str
) -> None:
    app = make_app(sqlite_url)
    app.extensions["celery"] = object()
    with pytest.raises(SetupError, match=r"Sequence\(celery=celery_app\)"):
        started(app)


# Messages


def test_a_message_holds_a_format_an_id_a_version_and_a_mark(file_app: MakeApp) -> None:
    app = file_app()
    run_id = started(app)
    (message,) = messages(app.extensions["celery"])
    args, kwargs, embedded = json.loads(message.body)
    mark = kwargs.pop("mark")
    assert (args, kwargs) == ([], {"format": FORMAT, "id": run_id, "version": 0})
    with app.app_context():
        uid = db.session.get_one(SequenceRun, run_id).uid
    assert mark == f"{zlib.crc32(uid.bytes):08x}"  # whoever reads it cannot tell the uid
    assert not any(embedded.values())
    assert message.content_type == "application/json"
    assert message.headers["task"] == TASK
    assert message.headers["shadow"] == "TaskShort.first"
    assert message.headers["timelimit"] == [None, None]
    assert message.headers["ignore_result"] is True
    assert message.headers["eta"] is None


def test_a_message_holds_none_of_the_data(file_app: MakeApp) -> None:
    app = file_app()
    with app.app_context():
        TaskLimited.set(key="of nobody else").start(secret="hush")
        TaskLimited.start_many([{"secret": "hush"}] * 100)
        db.session.commit()
    found = messages(app.extensions["celery"], "mail")
    for message in found:
        written = f"{message.body} {message.headers} {message.properties}"
        assert "TaskLimited.limited" in written
        assert not any(told in written for told in ("secret", "hush", "of nobody else"))
    assert [message.headers.get(MORE) for message in found] == [None] * 99 + [True]


def test_a_message_of_a_long_sequence_is_as_small(file_app: MakeApp) -> None:
    app = file_app()
    for sequence in (TaskShort, TaskLong0):
        started(app, sequence)
    short, long = messages(app.extensions["celery"])
    labels = ("TaskShort.first", "TaskLong0.Step0000")

    def size(message: t.Any) -> int:
        return len(message.body) + len(json.dumps(message.headers))

    assert size(long) - len(labels[1]) == size(short) - len(labels[0])


def test_options_travel_with_the_message(file_app: MakeApp) -> None:
    app = file_app()
    started(app, TaskLimited)
    (message,) = messages(app.extensions["celery"], "mail")
    assert message.headers["timelimit"] == [60.5, 50]
    assert message.properties["priority"] == 7


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_quorum_queues_get_no_countdown(make_app: MakeApp, sqlite_url: str, kind: str) -> None:
    """Celery refuses a short one there, and warns of each longer one."""
    queue = Queue("q", queue_arguments={"x-queue-type": kind})
    config = {"broker_url": "amqp://localhost", "task_queues": [queue], "task_default_queue": "q"}
    runtime = runtime_of(make_app(sqlite_url, config))
    assert [runtime.rides(delay) for delay in (0, 0.5, 2)] == [True, *2 * [kind == "classic"]]


def test_a_short_countdown_rides_and_a_long_one_does_not(file_app: MakeApp) -> None:
    app = file_app()
    started(app, countdown=2)
    started(app, countdown=3600)
    (message,) = messages(app.extensions["celery"])
    assert message.headers["eta"] is not None


def test_priorities_are_mapped_for_each_broker(
    make_app: MakeApp, sqlite_url: str, broker: Broker
) -> None:
    app = make_app(sqlite_url, broker.config())
    celery = runtime_of(app).celery
    queue = broker.queue_named("order")
    arguments = {"x-max-priority": 10} if broker.kind == "rabbitmq" else {}
    celery.amqp.queues.add(Queue(queue, queue_arguments=arguments))
    for priority in (0, 9, 5):
        started(app, queue=queue, priority=priority)

    def take() -> list[int]:
        with celery.connection_for_read() as connection:
            channel = connection.default_channel
            bound: t.Any = Queue(queue, queue_arguments=arguments, channel=channel)
            while (message := bound.get(no_ack=True)) is not None:
                taken.append(json.loads(message.body)[1]["id"])
        return taken

    taken: list[int] = []
    wait_until(lambda: len(take()) == 3)
    assert taken == [2, 3, 1]


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_the_message_is_json_whatever_the_application_uses(
    file_app: MakeApp, serializer: str
) -> None:
    app = file_app(task_serializer=serializer, accept_content=["json", serializer])
    started(app)
    (message,) = messages(app.extensions["celery"])
    assert message.content_type == "application/json"


def test_where_json_is_not_accepted_the_message_is_what_is(file_app: MakeApp) -> None:
    app = file_app(task_serializer="pickle", accept_content=["pickle"])
    started(app)
    (message,) = messages(app.extensions["celery"])
    assert message.content_type == "application/x-python-serialize"


def test_celerys_default_queue_and_routes_are_honoured(file_app: MakeApp) -> None:
    plain = file_app(task_default_queue="usual")
    routed = file_app(task_routes={"flask_sequence.*": {"queue": "runs", "priority": 3}})
    named = file_app(task_routes=[lambda name, *args, **more: {"queue": "by-function"}])
    for app, queue in ((plain, "usual"), (routed, "runs"), (named, "by-function")):
        run_id = started(app)
        with app.app_context():
            assert db.session.get_one(SequenceRun, run_id).queue == queue
        assert len(messages(app.extensions["celery"], queue)) == 1


def test_a_router_that_fails_is_named_as_such(file_app: MakeApp) -> None:
    def by_run(name: str, args: t.Any, kwargs: dict[str, str], *_: t.Any, **more: t.Any) -> str:
        return kwargs["run_id"]

    app = file_app(task_routes=[by_run])
    with (
        app.app_context(),
        pytest.raises(SetupError, match="A router in task_routes fails .*: KeyError: 'run_id'"),
    ):
        TaskShort.start()


def test_a_route_to_a_queue_that_celery_may_not_create_is_named(file_app: MakeApp) -> None:
    routes = {"flask_sequence.*": {"queue": "runs"}}
    app = file_app(task_routes=routes, task_create_missing_queues=False)
    with app.app_context(), pytest.raises(SetupError, match="'runs' missing .*_queues is off"):
        TaskShort.start()


def test_the_setting_goes_before_celerys_default_queue(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path
) -> None:
    config = {**embedded_config(tmp_path), "task_default_queue": "usual"}
    app = make_app(sqlite_url, config, SEQUENCE_QUEUE="runs")
    started(app)
    assert len(messages(app.extensions["celery"], "runs")) == 1


def test_a_queue_that_celery_may_not_create_stops_no_other_run(
    file_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = file_app(task_create_missing_queues=False)
    with app.app_context():
        for queue in (None, "missing", None):
            TaskShort.set(queue=queue).start()
        db.session.commit()
    assert len(messages(app.extensions["celery"])) == 2
    assert level_of(caplog, "TaskShort.first cannot be published: QueueNotFound") == "ERROR"
    assert len(caplog.records) == 1


# Messages that nobody sent


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"format": FORMAT, "id": "1", "version": 0},
        {"format": FORMAT, "id": 1.0, "version": 0},
        {"format": FORMAT, "id": True, "version": 0},
        {"format": FORMAT, "id": -1, "version": 0},
        {"format": FORMAT, "id": 2**63 - 1, "version": 0},
        {"format": FORMAT, "id": 1, "version": 2**63 - 1},
        {"format": FORMAT, "id": [1], "version": {}},
        {"format": FORMAT + 1, "id": 1, "version": 0},
        {"format": FORMAT, "id": 1, "version": -1},
        {"format": FORMAT, "id": "x" * 1_000_000, "version": 0},
        {"task": 1, "self": 2, "args": 3, "\n\x1b[31m": "forged line"},
    ],
    ids=lambda message: repr(message)[:40],
)
def test_a_forged_message_is_one_short_line(
    file_app: MakeApp, message: dict[str, t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = file_app()
    run_id = started(app)
    app.extensions["celery"].tasks[TASK].run(**message)
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("Left alone: ")
    assert len(text) < 1000
    assert "\n" not in text
    assert "\x1b" not in text
    with app.app_context():
        assert db.session.get_one(SequenceRun, run_id).attempt == 0


def test_positional_arguments_are_left_alone(
    file_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = file_app()
    run_id = started(app)
    app.extensions["celery"].tasks[TASK](1, format=FORMAT, id=run_id, version=0)
    assert [r.getMessage()[:11] for r in caplog.records] == ["Left alone:"]
    with app.app_context():
        assert db.session.get_one(SequenceRun, run_id).attempt == 0


@pytest.mark.parametrize("message", [(999, 0), (1, 17), (2**63 - 2, 2**63 - 2)])
def test_an_unknown_run_and_a_stale_version_are_dropped(
    file_app: MakeApp, message: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    app = file_app()
    assert started(app) == 1
    run_id, version = message
    app.extensions["celery"].tasks[TASK](format=FORMAT, id=run_id, version=version)
    assert not caplog.records
    with app.app_context():
        assert db.session.get_one(SequenceRun, 1).attempt == 0


# A broker that is down


@pytest.fixture(params=["closed", "silent", "full"])
def dead_port(request: pytest.FixtureRequest) -> t.Iterator[int]:
    """A port where nothing listens, nothing answers, or nothing is accepted."""
    if request.param == "closed":
        yield free_port()
        return
    broker = SilentBroker(full=request.param == "full")
    yield broker.port
    broker.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_commit_waits_two_seconds_at_most_for_a_dead_broker(
    make_app: MakeApp,
    sqlite_url: str,
    dead_port: int,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app(sqlite_url, {"broker_url": f"{scheme}://127.0.0.1:{dead_port}/"})
    with app.app_context():
        for _ in range(150):
            TaskShort.start()
        db.session.flush()
        began = time.monotonic()
        db.session.commit()
        assert time.monotonic() - began < 2.0
        tries: list[object] = []
        monkeypatch.setattr(Publisher, "_send", lambda *_: tries.append(_))
        for _ in range(3):
            TaskShort.start()
            db.session.commit()
        assert not tries
        assert db.session.query(SequenceRun).count() == 153
    (record,) = caplog.records
    assert "The broker does not take messages" in record.getMessage()
    assert record.levelno == logging.WARNING


def test_a_broker_that_came_back_is_used_again_after_its_rest(
    make_app: MakeApp,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer() as server:
        app = make_app(sqlite_url, {"broker_url": server.url})
        celery = runtime_of(app).celery
        server.kill()
        started(app)
        server.start()
        started(app)
        assert not messages(celery)  # it rests
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 10)
        started(app)
        assert len(messages(celery)) == 1
        assert len(caplog.records) == 1
        server.kill()
        started(app)
        assert len(caplog.records) == 2


def test_nothing_is_lost_on_a_connection_that_a_restart_has_cut(
    make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server:
        app = make_app(sqlite_url, {"broker_url": server.url})
        started(app)
        server.restart()
        run_id = started(app)
        (message,) = messages(runtime_of(app).celery)
        assert json.loads(message.body)[1]["id"] == run_id
    assert not caplog.records


def test_a_broker_that_stands_still_is_waited_for_once(
    make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server:
        app = make_app(sqlite_url, {"broker_url": server.url})
        started(app)
        server.pause()
        try:
            began = time.monotonic()
            started(app)
            assert time.monotonic() - began < 2.0
        finally:
            server.resume()
    assert len(caplog.records) == 1


def test_a_flushed_redis_heals_at_the_next_nudge(make_app: MakeApp, sqlite_url: str) -> None:
    with RedisServer() as server:
        queues = [Queue("celery", exchange="by-topic", exchange_type="topic", routing_key="c.#")]
        config = {"broker_url": server.url, "task_queues": queues}
        config["task_default_routing_key"] = "c.x"
        app = make_app(sqlite_url, {**config, "task_default_exchange": "by-topic"})
        celery = runtime_of(app).celery
        started(app)
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
            run_id = started(app)
            assert client.llen("celery") == 1, run_id
            client.flushall()
            assert publisher_of(runtime_of(app)).depth(celery.amqp.queues.values()) == 0
            started(app)
            assert publisher_of(runtime_of(app)).depth(celery.amqp.queues.values()) == 1


def test_many_nudges_stop_when_the_time_is_up(
    file_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = file_app()
    publisher = publisher_of(runtime_of(app))
    monkeypatch.setattr(publisher._line, "_send_one", lambda producer, nudge: time.sleep(0.3))
    nudge = Nudge(run_id=1, version=0, label="x", queue="celery")
    began = time.monotonic()
    assert publisher.publish([nudge] * 10) == 4
    assert time.monotonic() - began < 1.6


def test_a_commit_publishes_a_hundred_nudges_at_most(file_app: MakeApp) -> None:
    app = file_app()
    with app.app_context():
        for _ in range(120):
            TaskShort.start()
        db.session.commit()
    assert len(messages(app.extensions["celery"])) == 100


FORK = """
import os
from flask_sequence.runtime import runtime_of
from tests.support.application import create_app, db
from tests.worker.test_task import started

app = create_app({url!r}, {celery!r}, instance_path={folder!r})
started(app)
publisher = runtime_of(app).publisher
child = os.fork()
if child == 0:
    with app.app_context():
        db.engine.dispose(close=False)
    started(app)
    assert runtime_of(app).publisher not in (None, publisher)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
started(app)
assert runtime_of(app).publisher is publisher
"""


NUDGE = Nudge(run_id=0, version=0, label="S.s", queue="a")


def nudges_of(*parts: tuple[int, str, float]) -> list[Nudge]:
    """Make nudges: how many, of which queue, after how many seconds."""
    made: list[Nudge] = []
    for count, queue, countdown in parts:
        for _ in range(count):
            number = len(made)
            made.append(dataclasses.replace(NUDGE, run_id=number, queue=queue, countdown=countdown))
    return made


@pytest.mark.parametrize(
    ("parts", "sent", "telling"),
    [
        ([(100, "a", 0.0)], 100, []),
        ([(101, "a", 0.0)], 100, [99]),
        ([(60, "a", 0.0), (60, "b", 0.0)], 100, [99]),
        ([(60, "b", 0.0), (60, "a", 0.0), (20, "b", 0.0)], 100, [59, 99]),
        ([(120, "a", 0.0), (50, "b", 0.0)], 101, [99, 120]),
        ([(99, "a", 0.0), (1, "a", 4.0), (50, "a", 0.0)], 100, [98]),
        ([(100, "a", 4.0), (50, "a", 0.0)], 101, [100]),
        ([(100, "a", 0.0), (50, "a", 4.0)], 100, []),
    ],
)
def test_of_each_queue_with_a_rest_one_nudge_tells_of_it(
    parts: list[tuple[int, str, float]], sent: int, telling: list[int]
) -> None:
    chosen = task._chosen(nudges_of(*parts))
    assert len(chosen) == sent
    assert [nudge.run_id for nudge in chosen if nudge.more] == telling
    assert not any(nudge.countdown for nudge in chosen if nudge.more)


def test_a_forked_child_publishes_on_a_connection_of_its_own(
    make_app: MakeApp, sqlite_url: str, broker: Broker, tmp_path: Path
) -> None:
    folder = str(tmp_path / "instance")
    source = FORK.format(url=sqlite_url, celery=broker.config(), folder=folder)
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=60, check=True)
    app = make_app(sqlite_url, broker.config())
    found: list[t.Any] = []

    def take() -> list[t.Any]:
        found.extend(messages(runtime_of(app).celery, broker.queue))
        return found[2:]

    wait_until(take)
    assert len(found) == 3


# What a nudge raises


@pytest.mark.parametrize("refusals", [2, 3])  # the claim has two tries
def test_what_a_nudge_raises_is_logged_and_stored(
    sqlite_app: Flask, caplog: pytest.LogCaptureFixture, refusals: int
) -> None:
    run = TaskShort.start()
    db.session.commit()
    run_id = run.id
    db.session.remove()
    left = refusals

    def refuse(*args: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("the listener forgot its config")

    sa.event.listen(db.engine, "checkout", refuse)
    message = {"format": FORMAT, "id": run_id, "version": 0}
    celery = sqlite_app.extensions["celery"]
    result = celery.tasks[TASK].apply(kwargs=message)
    sa.event.remove(db.engine, "checkout", refuse)
    assert isinstance(result.result, RuntimeError)
    told = [record for record in caplog.records if record.name == "flask_sequence"]
    text = "RuntimeError: the listener forgot its config"
    assert told[0].getMessage() == f"A nudge for run {run_id} failed: {text}"
    assert told[0].exc_info is not None
    assert {record.levelname for record in told} == {"ERROR"}
    assert len(told) == refusals - 1
    run = db.session.get_one(SequenceRun, run_id)
    assert (run.status, run.error) == (Status.WAITING, text if refusals == 2 else None)
    celery.tasks[TASK].apply(kwargs=message)
    db.session.refresh(run)
    assert (run.status, run.error) == (Status.FINISHED, None)
