"""Brokers that lose, repeat, delay and refuse messages: nothing is lost, nothing done twice."""

from __future__ import annotations

import itertools
import os
import signal
import time
import typing as t

import pytest
import redis
import sqlalchemy as sa
from kombu import Connection, Queue

from flask_sequence import SequenceRun, Status
from flask_sequence.runtime import TASK, runtime_of
from tests.support import services
from tests.support.application import db
from tests.support.faulting import (
    REPEATED,
    SETTINGS,
    FaultBrief,
    FaultGated,
    FaultHolding,
    FaultLasting,
    FaultLate,
    FaultTwo,
    Sampler,
    repeat,
)
from tests.support.servers import RabbitMQServer, RedisServer, Server
from tests.support.waiting import wait_until
from tests.support.workers import write_module
from tests.support.working import LEASE_SECONDS, SWEEP_SECONDS, Scene

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.services import Broker
    from tests.support.workers import Worker

MakeScene = t.Callable[..., Scene]
StartWorker = t.Callable[..., "Worker"]

RECOVERY_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + 2.0
SLACK = 3.0
"""What a busy machine may add."""
RECONNECT_SECONDS = 2.0
"""How much longer Celery waits from try to try to reach a broker."""


@pytest.fixture
def make_scene(make_app: t.Callable[..., Flask], postgresql_url: str, tmp_path: Path) -> MakeScene:
    """The function that makes an application on PostgreSQL, for settings of Celery."""

    def make(celery: t.Any, **more: t.Any) -> Scene:
        return Scene.make(make_app, tmp_path, postgresql_url, celery, **{**SETTINGS, **more})

    return make


@pytest.fixture(params=["redis", "rabbitmq"])
def shared_broker(request: pytest.FixtureRequest) -> t.Iterator[Broker]:
    """A part of each server's in turn."""
    broker = services.make_broker(request.param)
    yield broker
    broker.clear()


@pytest.fixture
def redis_broker() -> t.Iterator[Broker]:
    broker = services.make_broker("redis")
    yield broker
    broker.clear()


def start_two(scene: Scene, start_worker: StartWorker) -> list[Worker]:
    """Start two workers of two processes each."""
    names = ("one@%h", "two@%h")  # RabbitMQ admits a name once
    return [start_worker(scene.source, "-c", "2", "-n", name, env=scene.env) for name in names]


def check_done(scene: Scene, ids: list[int], steps: int, timeout: float = 40) -> None:
    """Wait for runs; nothing of them is lost, and nothing done twice."""
    assert set(scene.wait(ids, timeout)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    assert len(scene.effects()) == len(ids) * steps
    assert len(scene.attempts()) == len(ids) * steps


def start_slowly(scene: Scene, seconds: float) -> tuple[list[int], float]:
    """Start 40 runs over some seconds; give them, and the most that a request took."""
    ids, slowest, until = [], 0.0, time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        ids += scene.start(FaultTwo)
        slowest = max(slowest, time.monotonic() - began)
        wait_until(lambda began=began: time.monotonic() - began > seconds / 40)  # type: ignore[misc]
    return ids, slowest


def delete_queue(broker: Broker) -> None:
    with Connection(str(broker.url)) as connection:
        Queue(broker.queue, channel=connection.default_channel).delete()


def purge_queue(broker: Broker) -> None:
    with Connection(str(broker.url)) as connection:
        Queue(broker.queue, channel=connection.default_channel).purge()


# Messages that are lost


def test_a_flushed_broker_with_hundreds_waiting(
    make_scene: MakeScene, start_worker: StartWorker
) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        # A pass of one keeper is over well before the next one may send the same again.
        scene = make_scene({"broker_url": server.url}, SEQUENCE_SWEEP_SECONDS=4.0)
        workers = start_two(scene, start_worker)
        with Sampler(scene, lambda: t.cast(int, client.llen("celery"))) as sampler:
            ids = scene.start(FaultTwo, 250)
            for begun in (100, 250):
                wait_until(lambda begun=begun: len(scene.attempts()) > begun, 30)  # type: ignore[misc]
                assert client.flushall()
            check_done(scene, ids, 2)
    print(f"idle {sampler.idle():.1f} s, flood {sampler.flood():.2f}")
    assert sampler.idle() <= 4.0 + SLACK
    assert sampler.flood() <= 1.2
    assert [worker.exit_code for worker in workers] == [None, None]


@pytest.mark.parametrize("lose", [delete_queue, purge_queue])
def test_a_queue_that_is_deleted_or_purged_under_its_workers(
    make_scene: MakeScene,
    shared_broker: Broker,
    start_worker: StartWorker,
    lose: t.Callable[[Broker], None],
) -> None:
    scene = make_scene(shared_broker.config())
    start_two(scene, start_worker)
    ids = scene.start(FaultTwo, 60)
    wait_until(lambda: len(scene.attempts()) > 10)
    lose(shared_broker)
    check_done(scene, ids + scene.start(FaultTwo, 5), 2)


def test_a_queue_that_drops_what_it_has_no_room_for(
    make_scene: MakeScene, start_worker: StartWorker
) -> None:
    broker = services.make_broker("rabbitmq")
    queue = Queue(broker.queue, routing_key=broker.queue, max_length=5)
    scene = make_scene(broker.config(task_queues=[queue]))
    # The worker would read a queue from the text of the settings.
    scene.source = "from kombu import Queue\n" + scene.source.replace(
        repr(queue), f"Queue({broker.queue!r}, routing_key={broker.queue!r}, max_length=5)"
    )
    ids = scene.start(FaultTwo, 40)
    start_two(scene, start_worker)
    check_done(scene, ids, 2)
    broker.clear()


PLAIN = """
from celery import Celery

celery_app = Celery("plain", broker={url!r})
celery_app.conf.task_default_queue = {queue!r}
"""


def test_a_worker_without_the_extension_throws_nudges_away(
    make_scene: MakeScene, redis_broker: Broker, start_worker: StartWorker
) -> None:
    scene = make_scene(redis_broker.config())
    plain = write_module(
        scene.folder, PLAIN.format(url=redis_broker.url, queue=redis_broker.queue), "plain_app"
    )
    ids = scene.start(FaultTwo, 20)
    other = start_worker(plain, "-c", "1", celery=True)
    wait_until(lambda: other.log.count("Received unregistered task") == 20)
    assert other.stop() == 0
    start_worker(scene.source, "-c", "2", env=scene.env)
    began = time.monotonic()
    check_done(scene, ids, 2)
    assert time.monotonic() - began <= RECOVERY_SECONDS + SLACK


def test_nudges_that_are_revoked_and_that_expire(
    make_scene: MakeScene, redis_broker: Broker, start_worker: StartWorker
) -> None:
    # As an annotation sets it for all tasks, also for ours.
    scene = make_scene(redis_broker.config(task_annotations={"*": {"expires": 0.5}}))
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    control = runtime_of(scene.app).celery.control
    inspect: t.Any = control.inspect(timeout=2)
    # A channel that RabbitMQ closes ends no worker; see the test of its consumer_timeout.
    (conf,) = wait_until(inspect.conf, 20).values()
    assert conf["broker_channel_error_retry"] is True
    ids = scene.start(FaultGated, 2)
    wait_until(lambda: len(scene.attempts("Gate")) == 2)
    (active,) = wait_until(inspect.active, 20).values()
    control.revoke([task["id"] for task in active], terminate=True)  # SIGTERM to the processes
    wait_until(lambda: len(scene.attempts("Gate")) == 4, RECOVERY_SECONDS + SLACK)
    ids += scene.start(FaultGated, 3)
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 1.0)
    scene.open()
    assert set(scene.wait(ids)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    assert "Discarding revoked task" in worker.log
    assert worker.exit_code is None


# Celery's settings for all tasks

SWITCHES = ("task_acks_late", "task_reject_on_worker_lost", "task_acks_on_failure_or_timeout")


def test_our_task_has_options_of_its_own(make_scene: MakeScene) -> None:
    scene = make_scene({"broker_url": "memory://", **dict.fromkeys(SWITCHES, True)})
    task: t.Any = runtime_of(scene.app).celery.tasks[TASK]
    assert (task.acks_late, task.reject_on_worker_lost, task.ignore_result) == (False, False, True)


@pytest.mark.full
@pytest.mark.parametrize("prefetch", [1, 64])
@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=3)))
def test_every_setting_gives_the_same_ledger(
    make_scene: MakeScene,
    redis_broker: Broker,
    start_worker: StartWorker,
    switches: tuple[bool, ...],
    prefetch: int,
) -> None:
    settings = dict(zip(SWITCHES, switches, strict=True))
    settings["worker_cancel_long_running_tasks_on_connection_loss"] = switches[0]
    scene = make_scene(redis_broker.config(**settings, worker_prefetch_multiplier=prefetch))
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    (gated,) = scene.start(FaultGated)
    wait_until(lambda: scene.attempts("Gate"))
    ids = [gated, *scene.start(FaultTwo, 20), *scene.start(FaultLate, 5)]
    os.kill(scene.attempts("Gate")[0][1], signal.SIGKILL)
    wait_until(lambda: len(scene.attempts("Gate")) == 2, RECOVERY_SECONDS + SLACK)
    scene.open()
    assert set(scene.wait(ids, 60)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    # The killed attempt is made again, and the five late ones want to be; nothing else.
    assert len(scene.attempts()) == (2 + 1) + 2 * 20 + 2 * 5
    assert worker.exit_code is None


# A broker that is away


@pytest.mark.parametrize("how", ["restarted", "silent"])
def test_a_broker_that_is_away_for_a_while(
    make_scene: MakeScene, start_worker: StartWorker, how: str
) -> None:
    with RedisServer() as server:
        scene = make_scene({"broker_url": server.url})
        be_away(scene, server, start_worker, how, seconds=3.0)


@pytest.mark.full
@pytest.mark.parametrize("how", ["killed", "silent"])
@pytest.mark.parametrize("kind", [RedisServer, RabbitMQServer])
def test_a_broker_that_is_away_for_a_minute(
    make_scene: MakeScene, start_worker: StartWorker, kind: type[Server], how: str
) -> None:
    with kind() as server:
        scene = make_scene({"broker_url": server.url})
        be_away(scene, server, start_worker, how, seconds=60.0)


def be_away(
    scene: Scene, server: Server, start_worker: StartWorker, how: str, seconds: float
) -> None:
    """Take a broker away in the middle of work, and bring it back."""
    workers = start_two(scene, start_worker)
    ids = scene.start(FaultTwo, 100)
    wait_until(lambda: len(scene.attempts()) > 20)
    if how == "restarted":
        server.restart()
    elif how == "killed":
        server.kill()
    else:
        server.pause()
    try:
        more, slowest = start_slowly(scene, seconds)
    finally:
        if how == "killed":
            server.start()
        elif how == "silent":
            server.resume()
    back, begun = time.monotonic(), len(scene.attempts())
    wait_until(lambda: len(scene.attempts()) > begun, 120)
    resumed = time.monotonic() - back
    check_done(scene, ids + more, 2, 120)
    print(f"{how}: slowest request {slowest:.2f} s, work went on after {resumed:.1f} s")
    assert slowest < 2.0
    # Celery's waits are 2, 4, 6 ... s long: of an outage the last takes about its square root.
    assert resumed <= RECONNECT_SECONDS * (1 + seconds**0.5) + RECOVERY_SECONDS
    assert [worker.exit_code for worker in workers] == [None, None]


# Messages that come again, and those that come late


def test_each_nudge_ten_times_at_once(
    make_scene: MakeScene,
    redis_broker: Broker,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = make_scene(redis_broker.config(), more=REPEATED, SEQUENCE_BURST_SECONDS=0)
    start_two(scene, start_worker)
    repeat(monkeypatch.setattr)
    ids = scene.start(FaultBrief, 40)
    check_done(scene, ids, 3)
    # A second claim of any step would have raised the version: each step has one, and one move.
    with scene.app.app_context():
        versions = {db.session.get_one(SequenceRun, run_id).version for run_id in ids}
    assert versions == {6}


@pytest.mark.full
@pytest.mark.parametrize("burst", [0.0, 1.0])
def test_what_repetition_costs(
    make_scene: MakeScene,
    redis_broker: Broker,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    burst: float,
) -> None:
    rates = []
    for more in ("", REPEATED):
        scene = make_scene(redis_broker.config(), more=more, SEQUENCE_BURST_SECONDS=burst)
        workers = start_two(scene, start_worker)
        if more:
            repeat(monkeypatch.setattr)
        before, began = len(scene.attempts()), time.monotonic()
        ids = scene.start(FaultBrief, 300)
        assert set(scene.wait(ids, 120)) == {Status.FINISHED}
        rates.append(900 / (time.monotonic() - began))
        assert len(scene.attempts()) - before == 900
        assert set(scene.effects().values()) == {1}
        for worker in workers:
            worker.kill()
    once, repeated = rates
    print(f"bursts of {burst} s: {once:.0f} steps/s, each nudge ten times: {repeated:.0f} steps/s")
    assert repeated >= 0.7 * once


def test_a_long_step_is_done_once_whatever_the_visibility_timeout(
    make_scene: MakeScene, redis_broker: Broker, start_worker: StartWorker
) -> None:
    celery = redis_broker.config(
        broker_transport_options={"visibility_timeout": 2},
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=64,
    )
    scene = make_scene(celery, SEQUENCE_LEASE_SECONDS=2.0)
    start_two(scene, start_worker)
    with scene.app.app_context():
        runs = [FaultLasting.start(seconds=10.0) for _ in range(4)]
        runs += [FaultLasting.start(seconds=0.05) for _ in range(20)]  # taken ahead, and waiting
        db.session.commit()
        ids = [run.id for run in runs]
    check_done(scene, ids, 2)


@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
def test_a_long_step_that_holds_locks_is_done_once(
    request: pytest.FixtureRequest,
    make_app: t.Callable[..., Flask],
    tmp_path: Path,
    start_worker: StartWorker,
    kind: str,
) -> None:
    config = dict(SETTINGS)
    if kind == "mariadb":
        options = {"connect_args": {"init_command": "SET innodb_snapshot_isolation = ON"}}
        config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    scene = Scene.make(make_app, tmp_path, request.getfixturevalue(f"{kind}_url"), **config)
    with scene.app.app_context():
        number = "BIGINT" if kind == "mariadb" else "INTEGER"
        columns = f"run_id {number}, FOREIGN KEY (run_id) REFERENCES sequence_runs (id)"
        db.session.execute(sa.text(f"CREATE TABLE notes ({columns})"))
        db.session.commit()
    start_two(scene, start_worker)
    with scene.app.app_context():
        runs = [FaultHolding.start(seconds=2.5 * LEASE_SECONDS), FaultHolding.start(seconds=0.05)]
        db.session.commit()
        ids = [run.id for run in runs]
    assert set(scene.wait(ids, 40)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    # SQLite has one writer. While the step is it, no lease can be renewed, and none is given up;
    # the other run's step finds the database locked, and may have to begin again.
    assert [run_id for run_id, _ in scene.attempts("Holding")].count(ids[0]) == 1
    with scene.app.app_context():
        noted = db.session.execute(sa.text("SELECT run_id FROM notes")).scalars().all()
    assert sorted(noted) == ids


class ImpatientRabbitMQ(RabbitMQServer):
    """Closes the channel of a consumer that leaves a message unacknowledged for 10 s."""

    def prepare(self) -> None:
        """Set the limit; it is looked at once a minute otherwise."""
        limits = "[{rabbit, [{consumer_timeout, 10000}, {channel_tick_interval, 1000}]}].\n"
        (self.folder / "advanced.config").write_text(limits)
        super().prepare()

    def environment(self) -> dict[str, str]:
        """Name the file of settings, too."""
        path = str(self.folder / "advanced.config")
        return {**super().environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": path}


@pytest.mark.full
def test_a_step_longer_than_the_consumer_timeout_is_done_once(
    make_scene: MakeScene, start_worker: StartWorker
) -> None:
    with ImpatientRabbitMQ() as server:
        scene = make_scene({"broker_url": server.url, "task_acks_late": True})
        workers = start_two(scene, start_worker)
        with scene.app.app_context():
            runs = [FaultLasting.start(seconds=30.0) for _ in range(4)]
            runs += [FaultLasting.start(seconds=0.05) for _ in range(20)]  # they make it impatient
            db.session.commit()
            ids = [run.id for run in runs]
        check_done(scene, ids, 2, 90)
        assert all("PRECONDITION_FAILED" in worker.log for worker in workers)
        assert [worker.exit_code for worker in workers] == [None, None]


GARBAGE = (
    b"garbage",
    b"\xff\xfe",
    b"[" * 100_000,
    b"[]",
    b"null",
    b"{}",
    b'{"__type__": "datetime", "__value__": "never"}',
    b'{"properties": {"delivery_tag": "1"}, "headers": {}, "body": ""}',
    b'{"body": "e30=", "headers": {"task": ["x"]}, "properties": {"delivery_tag": "1",'
    b' "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "celery"}}}',
    b'{"body": "e30=", "headers": null, "properties": {"delivery_tag": "1",'
    b' "body_encoding": "no", "delivery_info": {"exchange": "", "routing_key": "celery"}}}',
)


def test_what_is_no_message_ends_no_worker(
    make_scene: MakeScene, redis_broker: Broker, start_worker: StartWorker
) -> None:
    scene = make_scene(redis_broker.config())
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    with redis.Redis.from_url(str(redis_broker.url)) as client:
        for number, garbage in enumerate(GARBAGE, 1):
            client.lpush(redis_broker.queue, garbage)
            wait_until(
                lambda number=number: worker.log.count("Left alone") == number,  # type: ignore[misc]
                message=lambda: worker.log,
            )
    check_done(scene, scene.start(FaultTwo), 2)
    assert worker.exit_code is None
