"""Clocks and time zones that differ between the web process, the workers and the database."""

from __future__ import annotations

import datetime
import importlib.util
import sys
import time
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from tests.support import services
from tests.support.application import db
from tests.support.faulting import DELAY_SECONDS, SETTINGS, FaultGated, FaultLate
from tests.support.waiting import wait_until
from tests.support.working import LEASE_SECONDS, SWEEP_SECONDS, Scene

if t.TYPE_CHECKING:
    from flask import Flask

    from tests.support.workers import Worker

StartWorker = t.Callable[..., "Worker"]

ON_LINUX = sys.platform == "linux"
MINUTES = 300
"""How far a clock is off, in seconds."""
SLEEP = """
    import threading, time

    # With the library, time.sleep() fails: its clock is the monotonic one, which stays right.
    time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""
RECOVERY_SECONDS = LEASE_SECONDS + SWEEP_SECONDS + 2.0
SLACK = 3.0
"""What a busy machine may add."""


@pytest.fixture
def make_scene(
    request: pytest.FixtureRequest, make_app: t.Callable[..., Flask], tmp_path: Path
) -> t.Iterator[t.Callable[..., Scene]]:
    """The function that makes an application with Redis, on a kind of database."""
    broker = services.make_broker("redis")

    def make(kind: str, **config: t.Any) -> Scene:
        url = request.getfixturevalue(f"{kind}_url")
        return Scene.make(make_app, tmp_path, url, broker.config(), **SETTINGS, **config)

    yield make
    broker.clear()


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[None]:
    """Let this process, which is the web's, be in another time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def library() -> Path:
    """Give the library that makes a process believe in another time; from the package of PyPI."""
    package = importlib.util.find_spec("libfaketime")
    assert package is not None, "libfaketime is not installed: bin/setup"
    assert package.origin is not None
    return Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"


def off_by(seconds: int) -> dict[str, str]:
    """Give the environment of a process whose wall clock is off."""
    return {
        "LD_PRELOAD": str(library()),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def check_long_and_late(scene: Scene) -> None:
    """Let a step take longer than a lease, and another be tried again; at their times."""
    (gated,) = scene.start(FaultGated)
    late = scene.start(FaultLate, 6)
    held = wait_until(lambda: scene.attempts("Gate"), 20)
    began = time.monotonic()
    assert set(scene.wait(late, DELAY_SECONDS + RECOVERY_SECONDS + SLACK)) == {Status.FINISHED}
    wait_until(lambda: time.monotonic() - began > LEASE_SECONDS + 2 * SWEEP_SECONDS, 20)
    assert scene.attempts("Gate") == held
    scene.open()
    assert scene.wait([gated]) == [Status.FINISHED]
    assert set(scene.effects().values()) == {1}
    assert len(scene.attempts("Late")) == 12
    with scene.app.app_context():
        now = datetime.datetime.now(datetime.UTC)
        for run_id in late:
            run = db.session.get_one(SequenceRun, run_id)
            assert abs(now - run.created_at) < datetime.timedelta(minutes=1)
            first, second = run.step_runs
            assert first.finished_at is not None
            assert second.started_at is not None
            pause = second.started_at - first.finished_at
            assert pause >= datetime.timedelta(seconds=DELAY_SECONDS)


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_each_in_a_time_zone_of_its_own(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker, kind: str
) -> None:
    config: dict[str, t.Any] = {}
    if kind == "mariadb":
        options = {"connect_args": {"init_command": "SET time_zone = '+13:00'"}}
        config = {"SQLALCHEMY_ENGINE_OPTIONS": options}
    scene = make_scene(kind, **config)
    if kind == "postgresql":
        url = sa.make_url(scene.app.config["SQLALCHEMY_DATABASE_URI"])
        with sa.create_engine(url, poolclass=NullPool).begin() as connection:
            zone = "Pacific/Auckland"
            connection.exec_driver_sql(f"ALTER DATABASE {url.database} SET timezone = '{zone}'")
    for number, zone in enumerate(("America/New_York", "Asia/Kathmandu")):
        name = f"w{number}@%h"
        start_worker(scene.source, "-c", "2", "-n", name, env={**scene.env, "TZ": zone})
    check_long_and_late(scene)


@pytest.mark.skipif(not ON_LINUX, reason="libfaketime is installed for the tests on Linux only")
def test_workers_whose_clocks_are_minutes_off(
    make_scene: t.Callable[..., Scene], start_worker: StartWorker
) -> None:
    scene = make_scene("postgresql", more=SLEEP)
    workers = [
        start_worker(scene.source, "-c", "2", "-n", f"w{off}@%h", env={**scene.env, **off_by(off)})
        for off in (MINUTES, -MINUTES)
    ]
    check_long_and_late(scene)
    # No claim sticks: neither of the worker in the future nor of that in the past.
    (scene.folder / "open").unlink()
    ids = scene.start(FaultGated, 4)  # one for each process
    wait_until(lambda: len(scene.attempts("Gate")) == 5, 20)
    env = {**scene.env, **off_by(-MINUTES)}
    start_worker(scene.source, "-c", "4", "-n", "x@%h", env=env)
    for worker in workers:
        worker.kill()
    wait_until(lambda: len(scene.attempts("Gate")) == 9, RECOVERY_SECONDS + SLACK)
    scene.open()
    assert set(scene.wait(ids)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
