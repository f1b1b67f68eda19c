"""More runs are due than nudges are sent, or than a worker may take: real workers."""

from __future__ import annotations

import typing as t

import pytest

from flask_sequence import Status
from tests.support import services
from tests.support.application import db
from tests.support.working import Scene, WorkTwo

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.services import Broker
    from tests.support.workers import Worker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., "Worker"]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> t.Iterator[Broker | None]:
    if request.param == "embedded":
        yield None
        return
    broker = services.make_broker(request.param)
    yield broker
    broker.clear()


def start_by_one_call(count: int) -> list[int]:
    return WorkTwo.start_many([{}] * count)


def start_one_by_one(count: int) -> list[int]:
    runs = [WorkTwo.start() for _ in range(count)]
    db.session.flush()
    return [run.id for run in runs]


def start_in_both_ways(count: int) -> list[int]:
    runs = [WorkTwo.start() for _ in range(50)]
    run_ids = WorkTwo.start_many([{}] * (count - 50))
    return [*(run.id for run in runs), *run_ids]


@pytest.mark.parametrize(
    ("broker", "start", "celery"),
    [
        ("redis", start_one_by_one, {}),
        ("redis", start_by_one_call, {"task_protocol": 1}),
        ("rabbitmq", start_in_both_ways, {}),
        ("embedded", start_by_one_call, {}),
    ],
    indirect=["broker"],
)
def test_no_worker_is_idle_while_runs_are_due(
    make_app: MakeApp,
    postgresql_url: str,
    broker: Broker | None,
    tmp_path: Path,
    start_worker: StartWorker,
    start: t.Callable[[int], list[int]],
    celery: dict[str, t.Any],
) -> None:
    """One commit publishes 100 nudges at most, and the next sweep is an hour away."""
    config = celery if broker is None else broker.config(**celery)
    scene = Scene.make(make_app, tmp_path, postgresql_url, config, SEQUENCE_SWEEP_SECONDS=3600)
    start_worker(scene.source, "-c", "2", env=scene.env)
    with scene.app.app_context():
        run_ids = start(330)
        db.session.commit()
    assert scene.wait(run_ids, 60) == [Status.FINISHED] * len(run_ids)
    assert set(scene.effects().values()) == {1}
