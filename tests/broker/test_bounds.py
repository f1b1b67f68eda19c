"""Neither a commit nor the keeper waits long for a broker; a list of brokers is followed."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
import typing as t
from functools import partial

import pytest
from flask import current_app, request

from flask_sequence.broker import bounded
from flask_sequence.broker import publisher as publishing
from flask_sequence.broker.publisher import Publisher, publisher_of
from flask_sequence.runtime import Nudge, runtime_of
from tests.support import services
from tests.support.servers import free_port
from tests.support.silence import DribblingBroker, Names, SilentBroker
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

if t.TYPE_CHECKING:
    from flask import Flask

    from tests.support.services import Broker

MakeApp = t.Callable[..., "Flask"]
PROMISED_SECONDS = 2.0
NUDGE = Nudge(run_id=1, version=0, label="S.a", queue="celery")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Names]:
    """The resolver that takes the place of the system's."""
    names = Names(socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    yield names
    names.answers.set()


@pytest.fixture(params=["name", "addresses", "bytes"])
def hanging(request: pytest.FixtureRequest, names: Names) -> t.Iterator[str]:
    """Where a broker is that keeps one waiting: host and port."""
    if request.param == "name":
        yield "silent.test:1"
        return
    server = SilentBroker(full=True) if request.param == "addresses" else DribblingBroker()
    host = "four.test" if request.param == "addresses" else "127.0.0.1"
    yield f"{host}:{server.port}"
    server.close()


def publisher_at(make_app: MakeApp, url: str, *urls: str) -> Publisher:
    """Make the publisher of an application with some brokers."""
    app = make_app("sqlite://", {"broker_url": [url, *urls] if urls else url})
    return publisher_of(runtime_of(app))


def seconds_of(act: t.Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_commit_waits_two_seconds_at_most(
    make_app: MakeApp, hanging: str, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = publisher_at(make_app, f"{scheme}://{hanging}/")
    assert seconds_of(lambda: publisher.publish([NUDGE])) < PROMISED_SECONDS
    assert seconds_of(lambda: publisher.publish([NUDGE])) < 0.1  # it rests
    assert [record.getMessage()[:39] for record in caplog.records] == [
        "The broker does not take messages (Time"
    ]
    publisher.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_keeper_waits_two_seconds_at_most(make_app: MakeApp, hanging: str, scheme: str) -> None:
    publisher = publisher_at(make_app, f"{scheme}://{hanging}/")
    queues = [publisher.celery.amqp.queues["celery"]]

    def look() -> None:
        with pytest.raises((OSError, *publisher.celery.connection().connection_errors)):
            publisher.depth(queues)

    assert seconds_of(look) < PROMISED_SECONDS
    assert seconds_of(look) < PROMISED_SECONDS
    assert seconds_of(partial(publisher.publish, [NUDGE], rest=False)) < PROMISED_SECONDS
    publisher.close()


def test_threads_that_commit_at_once_wait_no_longer(make_app: MakeApp, names: Names) -> None:
    publisher = publisher_at(make_app, "redis://silent.test:1/")
    waited: list[float] = []

    def commit() -> None:
        waited.append(seconds_of(lambda: publisher.publish([NUDGE])))

    threads = [threading.Thread(target=commit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waited) == 8
    assert max(waited) < PROMISED_SECONDS


def test_what_is_answered_late_is_used(make_app: MakeApp, names: Names) -> None:
    broker = services.make_broker("redis")
    port = str(broker.url).rpartition(":")[2]
    publisher = publisher_at(make_app, f"redis://silent.test:{port}")
    queues = [publisher.celery.amqp.queues["celery"]]
    assert publisher.publish([NUDGE]) == 0
    names.answers.set()
    # What was to be sent is sent now, and nobody has to rest any longer.
    wait_until(lambda: publisher.publish([NUDGE]))
    assert publisher.depth(queues) >= 2
    publisher.close()
    broker.clear()


def test_a_call_that_never_returns_is_left_to_itself(
    make_app: MakeApp, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STUCK_SECONDS", 3.0)
    broker = services.make_broker("redis")
    port = str(broker.url).rpartition(":")[2]
    publisher = publisher_at(make_app, f"redis://silent.test:{port}")
    assert publisher.publish([NUDGE]) == 0
    monkeypatch.undo()  # the name is found now; the first thread still waits for it
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: names("a.test", *rest))
    wait_until(lambda: publisher.publish([NUDGE], rest=False), 20)
    assert publisher.publish([NUDGE]) == 1
    publisher.close()
    broker.clear()


# A list of brokers


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> t.Iterator[Broker]:
    broker = services.make_broker(request.param)
    yield broker
    broker.clear()


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("first", ["closed", "full"])
def test_a_list_of_brokers_is_followed(
    make_app: MakeApp, broker: Broker, first: str, is_text: bool
) -> None:
    silent = SilentBroker(full=True)
    port = silent.port if first == "full" else free_port()
    urls = [f"{str(broker.url).partition(':')[0]}://127.0.0.1:{port}//", str(broker.url)]
    config = {"broker_url": ";".join(urls) if is_text else urls}
    app = make_app("sqlite://", {**config, "task_default_queue": broker.queue})
    publisher = publisher_of(runtime_of(app))
    queues = [publisher.celery.amqp.queues[broker.queue]]
    nudge = Nudge(run_id=1, version=0, label="S.a", queue=broker.queue)
    assert publisher.depth(queues) == 0
    publisher.close()
    assert publisher.publish([nudge]) == 1
    wait_until(lambda: publisher.depth(queues) == 1)
    publisher.close()
    silent.close()


def test_the_failover_strategy_is_the_applications(make_app: MakeApp) -> None:
    broker = services.make_broker("redis")
    dead = [f"redis://127.0.0.1:{free_port()}/" for _ in range(2)]
    asked: list[str] = []

    def strategy(brokers: list[str]) -> t.Iterator[str]:
        yield brokers[0]
        while True:
            asked.append(brokers[-1])
            yield brokers[-1]

    config = {"broker_url": [*dead, broker.url], "broker_failover_strategy": strategy}
    publisher = publisher_of(runtime_of(make_app("sqlite://", config)))
    assert publisher.publish([NUDGE]) == 1
    assert asked == [broker.url]
    publisher.close()
    broker.clear()


# Where it is called from


def test_a_listener_of_a_publish_finds_the_request(make_app: MakeApp) -> None:
    from celery.signals import before_task_publish

    app = make_app("sqlite://")
    seen: list[str] = []

    def note(**_: t.Any) -> None:
        seen.append(f"{current_app.name} {request.path}")

    before_task_publish.connect(note)
    with app.test_request_context("/here"):
        assert publisher_of(runtime_of(app)).publish([NUDGE]) == 1
    before_task_publish.disconnect(note)
    assert seen == [f"{app.name} /here"]


GEVENT = """
from gevent import monkey

monkey.patch_all()
import gevent, time
from flask_sequence.broker.publisher import publisher_of
from flask_sequence.runtime import Nudge, runtime_of
from tests.support.application import create_app

turns = []

def work():
    while True:
        turns.append(time.monotonic())
        gevent.sleep(0.01)

app = create_app("sqlite://", {{"broker_url": "redis://127.0.0.1:{port}"}})
publisher = publisher_of(runtime_of(app))
nudge = Nudge(run_id=1, version=0, label="S.a", queue="celery")
gevent.spawn(work)
began = time.monotonic()
sent = publisher.publish([nudge])
assert time.monotonic() - began < 2.0, time.monotonic() - began
assert (sent == 0) == {hangs}
assert len(turns) >= 10 or not {hangs}
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_under_gevent_others_have_their_turn_meanwhile(hangs: bool) -> None:
    server = DribblingBroker()
    broker = services.make_broker("redis")
    port = server.port if hangs else str(broker.url).rpartition(":")[2]
    source = GEVENT.format(port=port, hangs=hangs)
    try:
        subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=60, check=True)
    finally:
        server.close()
        broker.clear()


FORK = """
import os, socket, threading, time
from flask_sequence.broker.publisher import publisher_of
from flask_sequence.runtime import Nudge, runtime_of
from tests.support.application import create_app
from tests.support.silence import Names

resolve = socket.getaddrinfo
socket.getaddrinfo = Names(resolve)
app = create_app("sqlite://", {{"broker_url": "redis://silent.test:{port}"}})
nudge = Nudge(run_id=1, version=0, label="S.a", queue="celery")
assert publisher_of(runtime_of(app)).publish([nudge]) == 0
child = os.fork()  # while a thread waits for the name
if child == 0:
    socket.getaddrinfo = lambda host, *args, **more: resolve("127.0.0.1", *args, **more)
    assert publisher_of(runtime_of(app)).publish([nudge]) == 1
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


def test_a_child_that_is_forked_meanwhile_publishes() -> None:
    broker = services.make_broker("redis")
    source = FORK.format(port=str(broker.url).rpartition(":")[2])
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=60, check=True)
    broker.clear()


def test_a_thread_that_nobody_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "IDLE_SECONDS", 0.05)
    calls = bounded.Bounded()
    for _ in range(2):
        by = calls.call(time.monotonic() + 5, threading.current_thread)
        assert by is not threading.current_thread()
        assert calls.call(time.monotonic() + 5, threading.current_thread) is by
        wait_until(partial(_is_over, by))


def test_a_thread_ends_with_what_it_belongs_to() -> None:
    calls = bounded.Bounded()
    thread = calls.call(time.monotonic() + 5, threading.current_thread)
    del calls
    gc.collect()
    wait_until(lambda: not thread.is_alive())


def test_a_call_after_one_that_hangs() -> None:
    calls, over = bounded.Bounded(), threading.Event()
    with pytest.raises(TimeoutError):
        calls.call(time.monotonic() + 0.05, over.wait)
    with pytest.raises(bounded.BusyError):
        calls.call(time.monotonic() + 0.05, lambda: None)
    assert calls.seconds > 0
    over.set()
    assert calls.call(time.monotonic() + 5, lambda: 7) == 7
    assert calls.seconds == 0
    with pytest.raises(ValueError, match="told"):
        calls.call(time.monotonic() + 5, raise_told)


def raise_told() -> None:
    raise ValueError("told")


def _is_over(thread: threading.Thread) -> bool:
    return not thread.is_alive()
