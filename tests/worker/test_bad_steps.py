"""Steps that end in every way a step should not: what is kept of it, and that others go on."""

from __future__ import annotations

import collections
import typing as t

import pytest

from flask_sequence import SequenceRun, Status
from tests.support import services
from tests.support.application import db
from tests.support.misbehaving import RAISED, BadDie, BadHog, BadRaise
from tests.support.working import MAX_CRASHES, Scene, WorkTwo

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.workers import Worker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., "Worker"]

ERRORS = {
    "two arguments": "TwoArguments: a b",
    "silent": "Silent: (its message cannot be read)",
    "lambda": "ValueError: holds a function",
    "local": "Local: of a class in a function",
    "exit": "SystemExit: 3",
    "exit 0": "SystemExit: 0",
    "interrupt": "KeyboardInterrupt",
    "generator": "GeneratorExit",
    "celery retry": "Retry: later",
    "ignore": "Ignore",
    "reject": "Reject: ('no', False)",
    "requeue": "Reject: ('again', True)",
}
"""What is kept of each exception."""
LIMIT_MEMORY = """
    import resource
    from celery import signals

    @signals.worker_process_init.connect(weak=False)
    def limit_memory(**_):
        pages = int(open("/proc/self/statm").read().split()[0])
        most = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


@pytest.fixture
def make_scene(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path
) -> t.Iterator[t.Callable[..., Scene]]:
    """The function that makes an application on PostgreSQL and Redis."""
    broker = services.make_broker("redis")

    def make(**more: t.Any) -> Scene:
        more["SEQUENCE_IMPORTS"] = ("tests.support.misbehaving",)
        celery = broker.config(**more.pop("celery", {}))
        return Scene.make(make_app, tmp_path, postgresql_url, celery, **more)

    yield make
    broker.clear()


def start(scene: Scene, sequence: type[t.Any], **data: t.Any) -> int:
    with scene.app.app_context():
        run = sequence.start(**data)
        db.session.commit()
        return int(run.id)


def ends(scene: Scene, run_id: int) -> list[str]:
    """Give how each attempt at a run ended."""
    with scene.app.app_context():
        return [step.status for step in db.session.get_one(SequenceRun, run_id).step_runs]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_whatever_a_step_raises_is_its_failure(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, pool: str
) -> None:
    scene = make_scene()
    worker = start_worker(scene.source, "-P", pool, "-c", "2", env=scene.env)
    children = worker.children
    ids = {kind: start(scene, BadRaise, kind=kind) for kind in RAISED}
    good = scene.start(WorkTwo, 5)
    assert set(scene.wait(ids.values(), 40)) == {Status.FAILED}
    assert {kind: scene.run(run_id).error for kind, run_id in ids.items()} == ERRORS
    for run_id in ids.values():
        assert ends(scene, run_id) == ["finished", "retry", "failed"]
    assert set(scene.wait(good)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    assert (worker.exit_code, scene.held()) == (None, 0)
    assert worker.children == children
    assert worker.stop() == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_takes_all_memory(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, late: bool
) -> None:
    celery = {"task_acks_late": late, "task_reject_on_worker_lost": late}
    scene = make_scene(more=LIMIT_MEMORY, celery=celery)
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    children = worker.children
    ids = [start(scene, BadHog) for _ in range(2)]
    assert scene.wait(ids, 30) == [Status.FAILED] * 2
    assert scene.run(ids[0]).error == "MemoryError"
    assert ends(scene, ids[0]) == ["finished", "retry", "failed"]
    assert set(scene.wait(scene.start(WorkTwo, 5))) == {Status.FINISHED}
    assert scene.held() == 0
    assert worker.children == children


def test_a_step_that_kills_its_process_is_given_up_while_others_finish(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene()
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    ids = [start(scene, BadDie, kind=kind) for kind in ("abort", "segfault")]
    good = scene.start(WorkTwo, 100)
    assert set(scene.wait(good, 40)) == {Status.FINISHED}
    assert set(scene.wait(ids, 40)) == {Status.FAILED}
    attempts = collections.Counter(run_id for run_id, _ in scene.attempts("Die"))
    assert attempts == dict.fromkeys(ids, MAX_CRASHES)
    for run_id in ids:
        assert ends(scene, run_id) == ["finished"] + ["crashed"] * MAX_CRASHES
        error = scene.run(run_id).error
        assert error is not None
        assert error.startswith("Crash: the process that ran the step died (crash")
    assert set(scene.effects().values()) == {1}
    assert (worker.exit_code, scene.held()) == (None, 0)
