"""What is killed, stopped or too slow: how soon its run goes on, and that no effect is doubled."""

from __future__ import annotations

import collections
import os
import signal
import time
import typing as t

import pytest

from flask_sequence import SequenceRun, Status
from flask_sequence.testing import drain
from tests.support import services
from tests.support.application import db
from tests.support.waiting import wait_until
from tests.support.working import (
    FOLDER,
    LEASE_SECONDS,
    MAX_CRASHES,
    SWEEP_SECONDS,
    Scene,
    WorkGated,
    WorkHard,
    WorkPoison,
    WorkSoft,
    WorkTwo,
    WorkWritten,
)

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.services import Broker
    from tests.support.workers import Worker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., "Worker"]

CHILD_SECONDS = 3.0
"""Within what time the death of a worker's child is noticed."""
WORKER_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + 2.0
"""Within what time the death of a worker is noticed."""
SLACK = 3.0
"""What a busy machine may add."""


@pytest.fixture
def redis_broker() -> t.Iterator[Broker]:
    broker = services.make_broker("redis")
    yield broker
    broker.clear()


@pytest.fixture
def scene(make_app: MakeApp, postgresql_url: str, redis_broker: Broker, tmp_path: Path) -> Scene:
    """An application on PostgreSQL and Redis."""
    return Scene.make(make_app, tmp_path, postgresql_url, redis_broker.config())


def started_in(scene: Scene, sequence: type[t.Any], step: str) -> tuple[int, int]:
    """Start a run, wait until it is in a step, and give its id and the process."""
    scene.start(sequence)
    wait_until(lambda: scene.attempts(step))
    return scene.attempts(step)[0]


def wait_for_second_attempt(scene: Scene, step: str, within: float) -> None:
    began = time.monotonic()
    wait_until(lambda: len(scene.attempts(step)) == 2, within + SLACK)
    print(f"taken up again after {time.monotonic() - began:.1f} s")


def statuses(scene: Scene, run_id: int) -> list[tuple[str, str]]:
    """Give step and status of each attempt."""
    with scene.app.app_context():
        run = db.session.get_one(SequenceRun, run_id)
        return [(s.step, s.status) for s in run.step_runs]


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_a_killed_child_costs_three_seconds(
    make_app: MakeApp,
    postgresql_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
    kind: str,
) -> None:
    broker = services.make_broker(kind)
    scene = Scene.make(make_app, tmp_path, postgresql_url, broker.config())
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    run_id, child = started_in(scene, WorkWritten, "Written")
    os.kill(child, signal.SIGKILL)
    wait_for_second_attempt(scene, "Written", CHILD_SECONDS)
    scene.open()
    assert scene.wait([run_id]) == [Status.FINISHED]
    assert scene.effects() == {
        (run_id, "Written early"): 1,
        (run_id, "Written"): 1,
        (run_id, "Second"): 1,
    }
    assert statuses(scene, run_id) == [
        ("Written", "crashed"),
        ("Written", "finished"),
        ("Second", "finished"),
    ]
    assert worker.exit_code is None
    if kind == "redis":  # without an event loop billiard waits 10 s for what is lost
        assert worker.stop() == 0
    worker.kill()
    broker.clear()


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed_idle_children_take_nothing_with_them(
    make_app: MakeApp,
    sqlite_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
    kind: str,
) -> None:
    broker = services.make_broker(kind)
    scene = Scene.make(make_app, tmp_path, sqlite_url, broker.config())
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    dead: set[int] = set()
    for child in worker.children:
        os.kill(child, signal.SIGKILL)
        dead.add(child)
        wait_until(lambda: len(set(worker.children) - dead) == 2)
        assert scene.wait(scene.start(WorkTwo)) == [Status.FINISHED]
    assert worker.stop() == 0


def test_a_killed_main_process_leaves_nothing_behind(
    scene: Scene, start_worker: StartWorker
) -> None:
    first = start_worker(scene.source, "-c", "1", env=scene.env)
    run_id, child = started_in(scene, WorkGated, "Gate")
    first.process.kill()  # its child lives on, for a while
    start_worker(scene.source, "-c", "1", env=scene.env)
    wait_for_second_attempt(scene, "Gate", WORKER_SECONDS)
    scene.open()
    assert scene.wait([run_id]) == [Status.FINISHED]
    assert set(scene.effects().values()) == {1}
    assert scene.attempts("Gate")[0] == (run_id, child)


def test_a_cold_shutdown_frees_what_was_held(
    scene: Scene, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    run_id, _ = started_in(scene, WorkWritten, "Written")
    worker.send(signal.SIGQUIT)
    worker.wait(15)
    assert scene.held() == 0
    assert scene.workers() == []
    scene.open()
    assert scene.effects() == {}
    assert statuses(scene, run_id) == [("Written", "crashed")]
    monkeypatch.setenv(FOLDER, str(scene.folder))
    drain(scene.app, ignore_due=True)
    assert set(scene.effects().values()) == {1}
    assert scene.statuses() == {Status.FINISHED: 1}


def test_time_limits(scene: Scene, start_worker: StartWorker) -> None:
    start_worker(scene.source, "-c", "2", env=scene.env)
    (hard,) = scene.start(WorkHard)
    (soft,) = scene.start(WorkSoft)
    assert scene.wait([soft]) == [Status.FAILED]
    assert "SoftTimeLimitExceeded" in (scene.run(soft).error or "")
    assert statuses(scene, soft) == [("SoftLimit", "failed")]
    assert scene.wait([hard], 30) == [Status.FAILED]
    error = scene.run(hard).error or ""
    assert "the step took longer than its time limit of 1 s" in error
    assert statuses(scene, hard) == [("HardLimit", "crashed")] * 3
    assert scene.effects() == {}


def test_a_step_that_kills_its_process_fails_alone(scene: Scene, start_worker: StartWorker) -> None:
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    (poison,) = scene.start(WorkPoison)
    good = scene.start(WorkTwo, 30)
    assert set(scene.wait(good, 30)) == {Status.FINISHED}
    assert scene.wait([poison], 30) == [Status.FAILED]
    assert "died" in (scene.run(poison).error or "")
    assert len(scene.attempts("Poison")) == MAX_CRASHES
    effects = scene.effects()
    assert set(effects.values()) == {1}
    assert collections.Counter(step for _, step in effects) == {"First": 31, "Second": 30}
    assert worker.exit_code is None
