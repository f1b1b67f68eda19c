"""The same journey in each place: a worker is killed, and every step is done once."""

from __future__ import annotations

import typing as t

import pytest

from flask_sequence import Status
from tests.matrix.places import SQS, PgBouncer, ReplicaRedis, SecretRedis, Sentinel, TLSRedis
from tests.support import services
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until
from tests.support.working import Scene, WorkGated, WorkTwo

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.workers import Worker

pytestmark = pytest.mark.full

WAIT = 60.0


class Journey:
    """Goes from a killed worker to its successor."""

    def __init__(
        self,
        make_app: t.Callable[..., Flask],
        folder: Path,
        start_worker: t.Callable[..., Worker],
    ) -> None:
        self._make_app = make_app
        self._folder = folder
        self._start_worker = start_worker

    def go(
        self, url: str, celery: t.Mapping[str, t.Any] | None = None, **config: t.Any
    ) -> tuple[Scene, Worker]:
        """Go, and give the scene, and the worker that is left.

        :param url: The address of the database.
        :param celery: Celery's settings.
        :param config: More of ``app.config``.
        """
        scene = Scene.make(self._make_app, self._folder, url, celery, **config)
        worker = self._start_worker(scene.source, "-c", "2", env=scene.env)
        (gated,) = scene.start(WorkGated)
        ids = scene.start(WorkTwo, 20)
        wait_until(lambda: scene.attempts("Gate"), WAIT, message=lambda: worker.log)
        worker.kill()
        scene.open()
        worker = self._start_worker(scene.source, "-c", "2", env=scene.env)
        assert set(scene.wait([gated, *ids], WAIT)) == {Status.FINISHED}, worker.log
        expected = {(run_id, step): 1 for run_id in ids for step in ("First", "Second")}
        expected |= {(gated, step): 1 for step in ("First", "Gate", "Second")}
        assert scene.effects() == expected
        return scene, worker


@pytest.fixture
def journey(
    make_app: t.Callable[..., Flask], tmp_path: Path, start_worker: t.Callable[..., Worker]
) -> Journey:
    return Journey(make_app, tmp_path, start_worker)


def test_pgbouncer_in_transaction_mode(journey: Journey, postgresql_url: str) -> None:
    options: dict[str, t.Any] = {"connect_args": {"prepare_threshold": None}}
    with PgBouncer() as bouncer:
        url = bouncer.through(postgresql_url)
        _, worker = journey.go(url, SQLALCHEMY_ENGINE_OPTIONS=options)
        assert worker.stop() == 0


@pytest.mark.parametrize("kind", [RedisServer, SecretRedis, TLSRedis])
def test_redis(journey: Journey, postgresql_url: str, kind: type[RedisServer]) -> None:
    with kind() as server:
        _, worker = journey.go(postgresql_url, {"broker_url": server.url})
        assert worker.stop() == 0


def test_sentinel_lets_a_replica_take_over(journey: Journey, postgresql_url: str) -> None:
    with RedisServer() as main, ReplicaRedis(main), Sentinel(main) as sentinel:
        wait_until(sentinel.knows_replica, 30)
        scene, worker = journey.go(postgresql_url, sentinel.celery())
        main.kill()
        ids = scene.start(WorkTwo, 20)
        assert set(scene.wait(ids, WAIT)) == {Status.FINISHED}, worker.log
        assert worker.stop() == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_queues_of_rabbitmq(journey: Journey, postgresql_url: str, kind: str) -> None:
    broker = services.make_broker("rabbitmq")
    celery = broker.config(task_default_queue_type=kind)
    try:
        _, worker = journey.go(postgresql_url, celery)
        assert worker.stop() == 0
        assert "Traceback" not in worker.log
    finally:
        broker.clear()


def test_sqs(journey: Journey, postgresql_url: str) -> None:
    with SQS() as server:
        _, worker = journey.go(postgresql_url, server.celery())
        assert worker.stop() == 0
