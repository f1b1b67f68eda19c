"""Shutdowns, restarts and new code while runs are under way."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
import typing as t

import celery
import pytest
import sqlalchemy as sa

from flask_sequence import Status, StepRun, StepStatus
from flask_sequence.runtime import runtime_of
from tests.support import services
from tests.support.application import Effect, db
from tests.support.deploying import RELEASE, Grown, Load
from tests.support.stepping import Stepping, make_sequence, make_step
from tests.support.waiting import meanwhile, wait_until
from tests.support.workers import Worker, write_module
from tests.support.working import LEASE_SECONDS, SWEEP_SECONDS, Scene, WorkTwo, WorkWritten

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.services import Broker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., Worker]

TAKEOVER_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + 2.0
"""Within what time the death of a worker is noticed."""
SLACK = 5.0
"""What a busy machine may add."""
STOP_SECONDS = 2.0
"""How much longer than the steps in hand a warm shutdown takes."""


@pytest.fixture
def broker() -> t.Iterator[Broker]:
    broker = services.make_broker("redis")
    yield broker
    broker.clear()


@pytest.fixture
def make_scene(
    make_app: MakeApp, postgresql_url: str, broker: Broker, tmp_path: Path
) -> t.Callable[..., Scene]:
    """The function that makes an application on PostgreSQL and Redis."""

    def make(celery: t.Mapping[str, t.Any] | None = None, **more: t.Any) -> Scene:
        return Scene.make(make_app, tmp_path, postgresql_url, broker.config(**celery or {}), **more)

    return make


def ends(scene: Scene) -> list[tuple[str, StepStatus]]:
    """Give step and end of each attempt, in their order."""
    with scene.app.app_context():
        columns = (StepRun.step, StepRun.status)
        return [(s, e) for s, e in db.session.execute(sa.select(*columns).order_by(StepRun.id))]


# Shutdowns

SHUTDOWNS = {
    "cold": [signal.SIGQUIT],
    "soft": [signal.SIGQUIT],
    "remapped": [signal.SIGTERM],
    "cold after warm": [signal.SIGTERM, signal.SIGQUIT],
    "hard": [signal.SIGQUIT, signal.SIGQUIT],
    "docker stop": [signal.SIGTERM, signal.SIGKILL],
}
"""What is sent to the main process, one after the other."""


@pytest.mark.parametrize("name", SHUTDOWNS)
def test_what_a_shutdown_interrupts_is_done_by_another_worker(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, name: str
) -> None:
    soft = {"worker_soft_shutdown_timeout": 1.0} if name == "soft" else {}
    scene = make_scene(soft)
    env = {**scene.env, **({"REMAP_SIGTERM": "SIGQUIT"} if name == "remapped" else {})}
    first = start_worker(scene.source, "-c", "1", env=env)
    (run_id,) = scene.start(WorkWritten)
    wait_until(lambda: scene.attempts("Written"))
    second = start_worker(scene.source, "-c", "1", env=scene.env)
    for number in SHUTDOWNS[name]:
        if number is signal.SIGKILL:
            first.kill()
            continue
        first.send(number)
        wait_until(lambda: "shutdown" in first.log.lower() or first.exit_code is not None)
    first.wait(15)
    wait_until(lambda: len(scene.attempts("Written")) == 2, TAKEOVER_SECONDS + SLACK)
    assert scene.attempts("Written")[1][1] in second.children
    scene.open()
    assert scene.wait([run_id]) == [Status.FINISHED]
    assert set(scene.effects().values()) == {1}
    # It counts as a crash, of which a run bears some, and uses up no retry.
    assert ends(scene) == [("Written", "crashed"), ("Written", "finished"), ("Second", "finished")]


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery has soft shutdowns from 5.5 on")
def test_a_soft_shutdown_waits_for_what_is_nearly_done(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene({"worker_soft_shutdown_timeout": 4.0})
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    (run_id,) = scene.start(WorkWritten)
    wait_until(lambda: scene.attempts("Written"))
    worker.send(signal.SIGQUIT)
    worker.wait_for("Soft Shutdown")
    scene.open()
    worker.wait(15)
    assert scene.held() == 0
    assert scene.effects()[run_id, "Written"] == 1
    assert len(scene.attempts("Written")) == 1


def test_a_warm_shutdown_waits_for_no_result_that_celery_has_forgotten(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene()
    worker = start_worker(scene.source, "-c", "1", "--loglevel", "debug", env=scene.env)
    (child,) = worker.children
    os.kill(child, signal.SIGSTOP)  # It takes what it is sent, and does not say so.
    (run_id,) = scene.start(WorkTwo)
    worker.wait_for("received")
    for _ in range(2):  # By then Celery's event loop has written it.
        assert runtime_of(scene.app).celery.control.ping(timeout=2)
    worker.send(signal.SIGTERM)
    worker.wait_for("Worker: Stopping Pool")
    os.kill(child, signal.SIGCONT)
    assert worker.wait(STOP_SECONDS + SLACK) == 0
    assert [pid for _, pid in scene.attempts()] == [child]
    assert scene.held() == 0
    start_worker(scene.source, "-c", "1", env=scene.env)
    assert scene.wait([run_id]) == [Status.FINISHED]
    assert set(scene.effects().values()) == {1}


# Restarts


def finished_at(scene: Scene) -> list[float]:
    """Give when each step was finished, in seconds, in their order."""
    with scene.app.app_context():
        times = db.session.scalars(sa.select(StepRun.finished_at)).all()
    return sorted(at.timestamp() for at in times)


def loaded(scene: Scene) -> t.ContextManager[None]:
    """Keep at least 40 runs waiting."""

    def feed() -> None:
        if scene.statuses()[Status.WAITING] < 40:
            scene.start(Load, 20)

    return meanwhile(feed, interval=0.2)


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.full)])
def test_rolling_restarts_under_load(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, count: int
) -> None:
    scene = make_scene(SEQUENCE_IMPORTS=("tests.support.deploying",))
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    exits = []
    with loaded(scene):
        wait_until(scene.attempts)
        for _ in range(count):
            following = start_worker(scene.source, "-c", "2", env=scene.env)
            began = time.monotonic()
            assert worker.stop(STOP_SECONDS + SLACK) == 0
            exits.append(time.monotonic() - began)
            worker = following
    ids = range(1, sum(scene.statuses().values()) + 1)
    assert set(scene.wait(ids, 60)) == {Status.FINISHED}
    # No step was cut off: each was done by one attempt, and nobody waited for a lease.
    assert len(scene.attempts()) == 3 * len(ids)
    assert {end for _, end in ends(scene)} == {StepStatus.FINISHED}
    assert set(scene.effects().values()) == {1}
    times = finished_at(scene)
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    p50, p95 = (gaps[int(len(gaps) * part)] for part in (0.5, 0.95))
    print(
        f"{count} restarts, {len(ids)} runs: gaps p50 {p50:.3f} s, p95 {p95:.3f} s, "
        f"max {gaps[-1]:.3f} s; a warm shutdown took {max(exits):.1f} s at most"
    )
    assert p95 <= 2.0


# New code


def test_old_and_new_code_side_by_side(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene(SEQUENCE_IMPORTS=("tests.support.deploying",), SEQUENCE_BURST_SECONDS=0)
    old = start_worker(scene.source, "-c", "1", env={**scene.env, RELEASE: "1"})
    new = start_worker(scene.source, "-c", "1", env={**scene.env, RELEASE: "2"})
    ids = scene.start(Grown, 40)
    assert set(scene.wait(ids, 40)) == {Status.FINISHED}
    effects = scene.effects()
    assert set(effects.values()) == {1}
    assert {run_id for run_id, step in effects if step == "Second"} == set(ids)
    assert {pid for _, pid in scene.attempts("Added")} <= set(new.children)
    # What stood at the new step was left to the worker that knows it.
    assert {step for step, end in ends(scene) if end is not StepStatus.FINISHED} == set()
    for worker in (old, new):
        assert {pid for _, pid in scene.attempts()} & set(worker.children)
        assert worker.stop() == 0


def test_a_worker_that_lacks_the_code(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene(SEQUENCE_IMPORTS=("tests.support.deploying",))
    lacking = scene.source.replace("'tests.support.deploying',", "")
    assert lacking != scene.source
    module = write_module(scene.folder, lacking, "lacking_app")
    start_worker(module, "-c", "1", env=scene.env)
    ids = scene.start(Grown, 4)
    wait_until(lambda: scene.statuses() == {Status.BLOCKED: 4}, 2 * SWEEP_SECONDS + SLACK)
    assert "The step 'First' of the sequence 'Grown' is not known" in str(scene.run(1).error)
    knowing = start_worker(scene.source, "-c", "1", env=scene.env)
    ids += scene.start(Grown, 4)
    assert set(scene.wait(ids, 30)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    assert len(scene.attempts()) == len(ids) * 2
    assert {pid for _, pid in scene.attempts()} <= set(knowing.children)


def test_a_worker_without_the_extension_discards_nudges_and_no_run(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, broker: Broker
) -> None:
    scene = make_scene()
    plain = f"""
        from celery import Celery
        celery_app = Celery()
        celery_app.conf.update({broker.config()!r})
    """
    module = write_module(scene.folder, plain, "plain_app")
    other = start_worker(module, "-c", "1", celery=True, env=scene.env)
    ids = scene.start(WorkTwo, 10)
    wait_until(lambda: other.log.count("unregistered task") >= 10)
    other.kill()
    start_worker(scene.source, "-c", "1", env=scene.env)
    assert set(scene.wait(ids, TAKEOVER_SECONDS + SLACK)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}


# The row holds the name of the step: what becomes of it where the steps have changed meanwhile.


@pytest.mark.parametrize(
    ("steps", "done"),
    [
        ("abc", "abc"),
        ("axbyc", "abyc"),  # added
        ("bc", "abc"),  # removed, and done already
        ("ab", "ab"),  # removed, and still to come
        ("bac", "abac"),  # moved: on with the step that it stands at, and those after it
        ("cab", "ab"),
        ("acB", None),  # renamed
    ],
)
def test_steps_that_changed_in_flight(stepping: Stepping, steps: str, done: str | None) -> None:
    def body(step: t.Any) -> None:
        db.session.add(Effect(run_id=step.run.id, note=step.name))

    def release(names: str) -> None:
        make_sequence(*(make_step(body, name) for name in names))

    release("abc")
    run_id = stepping.start(*(make_step(body, name) for name in "abc"))
    stepping.runtime.settings = dataclasses.replace(stepping.runtime.settings, burst_seconds=0)
    stepping.advance(run_id)
    assert stepping.row(run_id).step == "b"
    release(steps)
    if done is None:
        before = stepping.row(run_id)
        assert stepping.advance(run_id).status is None
        assert stepping.row(run_id) == before
        release("abc")
        done = "abc"
    while stepping.row(run_id).status is Status.WAITING:
        stepping.advance(run_id)
    assert "".join(stepping.notes()) == done
    assert stepping.row(run_id).status is Status.FINISHED
