"""The keeper, in this process: what it sweeps, what it notices, and how a fork waits for it."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from celery.worker import state
from flask_sqlalchemy import SQLAlchemy
from kombu import Queue

from flask_sequence import BaseSequence, step
from flask_sequence.broker.publisher import publisher_of
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import runs
from flask_sequence.runtime import Nudge, runtime_of
from flask_sequence.worker import keeper as keeper_module
from flask_sequence.worker.keeper import Keeper, keeper_engine
from flask_sequence.worker.signals import limited_steps
from tests.support.application import db
from tests.support.working import WorkHard

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

MakeApp = t.Callable[..., "Flask"]


def test_a_fork_waits_for_the_keeper_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "FORK_SECONDS", 0.5)
    lock = keeper_module._IOLock()
    held, go = threading.Event(), threading.Event()

    def talk() -> None:
        with lock:
            held.set()
            go.wait(10)

    thread = threading.Thread(target=talk)
    thread.start()
    held.wait(10)
    began = time.monotonic()
    lock._before_fork()
    assert time.monotonic() - began > 0.4
    lock._after_fork_in_parent()
    assert lock._lock.locked()  # still the keeper's
    go.set()
    thread.join()
    lock._before_fork()
    assert lock._lock.locked()
    lock._after_fork_in_parent()
    assert not lock._lock.locked()
    lock._before_fork()
    lock._after_fork_in_child()
    with lock:  # a new one
        pass


class FakeConsumer:
    """What the keeper needs of Celery's consumer."""

    def __init__(self, app: t.Any, *queues: str) -> None:
        self.app = app
        self.pool = SimpleNamespace(_pool=None)
        self.controller = SimpleNamespace(concurrency=1)
        self.task_consumer: t.Any = SimpleNamespace(queues=[Queue(name) for name in queues])


def test_a_keeper_sweeps_only_what_its_worker_consumes(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    runtime = runtime_of(app)
    consumer = FakeConsumer(runtime.celery, "celery")
    keeper = Keeper(runtime, consumer)
    # A message to another queue makes Celery count it among the app's queues.
    runtime.celery.amqp.queues["mail"]
    assert set(keeper.queues) == {"celery"}
    consumer.task_consumer = None  # while it connects again
    assert set(keeper.queues) == {"celery"}
    consumer.task_consumer = SimpleNamespace(queues=[Queue("celery"), Queue("added")])
    assert set(keeper.queues) == {"celery", "added"}


def test_what_keeps_the_keeper_from_its_work_is_said_once_an_interval(
    make_app: MakeApp,
    empty_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_SECONDS", 0)
    runtime = runtime_of(make_app(empty_database_url))
    runtime.worker_id = "w"
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    looks: list[float] = []

    def look() -> None:
        looks.append(keeper._complained_at)
        if len(looks) == 3:
            keeper._stopped.set()
        Keeper._look(keeper)

    monkeypatch.setattr(keeper, "_look", look)
    keeper.run()
    assert len(looks) == 3
    assert caplog.text.count("'flask db upgrade'") == 1
    keeper._complained_at -= 6
    keeper._complain(OSError("gone"))
    assert "OSError: gone" in caplog.text


def test_steps_with_limits_are_named_where_they_may_come(
    make_app: MakeApp, sqlite_url: str
) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    assert WorkHard.step_names[0] == "HardLimit"
    found = limited_steps(runtime, {"celery"})
    assert {"WorkHard.HardLimit", "WorkSoft.SoftLimit"} <= set(found)
    assert "WorkTwo.First" not in found
    assert limited_steps(runtime, {"mail-of-this-test"}) == []


def test_a_child_that_lived_shortly_is_noticed(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(make_app(sqlite_url, SEQUENCE_SWEEP_SECONDS=None))
    runtime.worker_id = "w"
    children: set[int] = {1}
    looked: list[int] = []
    monkeypatch.setattr("flask_sequence.worker.keeper.live_processes", lambda pool: set(children))
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    monkeypatch.setattr(keeper, "_free_dead", lambda: looked.append(1))
    keeper._look()
    keeper._watch_until = 0.0
    looked.clear()
    keeper._look()
    assert not looked
    children.clear()
    children.add(3)  # 2 came and went between two looks
    keeper._look()
    assert looked


def test_the_pool_replaces_a_dead_child_at_once(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(make_app(sqlite_url, SEQUENCE_SWEEP_SECONDS=None))
    runtime.worker_id = "w"
    consumer: t.Any = FakeConsumer(runtime.celery, "celery")
    asked: list[object] = []
    consumer.hub = SimpleNamespace(call_soon=asked.append)
    consumer.pool.maintain_pool = object()
    children = {1, 2}
    monkeypatch.setattr("flask_sequence.worker.keeper.live_processes", lambda pool: set(children))
    keeper = Keeper(runtime, consumer)
    keeper._look()
    keeper._look()
    assert asked == []
    children.remove(1)
    keeper._look()
    assert asked == [consumer.pool.maintain_pool]


@pytest.mark.parametrize("place", ["database", "config", "bind"])
def test_the_keepers_engine_keeps_the_arguments_for_the_driver(
    make_app: MakeApp, tmp_path: Path, place: str
) -> None:
    options: dict[str, t.Any] = {"connect_args": {"cached_statements": 7}}
    config: dict[str, t.Any] = {"SQLALCHEMY_ENGINE_OPTIONS": options} if place == "config" else {}
    database = SQLAlchemy(engine_options=options if place == "database" else {})
    url = f"sqlite:///{tmp_path / 'x.sqlite'}"
    if place == "bind":
        config = {"SQLALCHEMY_BINDS": {"runs": {"url": url, **options}}}
    app = make_app(url, database=database, **config)
    runtime = runtime_of(app)
    if place == "bind":
        runtime.settings = dataclasses.replace(runtime.settings, bind_key="runs")
    engine = keeper_engine(runtime)
    seen: list[dict[str, t.Any]] = []
    sa.event.listen(engine, "do_connect", lambda *arguments: seen.append(arguments[3]))
    engine.connect().close()
    (given,) = seen
    assert (given["cached_statements"], given["timeout"]) == (7, 2)


@step
def end(data: dict[str, t.Any]) -> None:
    """Finish."""


class KeeperShort(BaseSequence):
    steps = (end,)


def test_what_waits_in_the_broker_is_not_published_again(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(app := make_app(sqlite_url))
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    publisher = publisher_of(runtime)
    sent: list[Nudge] = []
    monkeypatch.setattr(publisher, "publish", lambda nudges, rest=True: sent.extend(nudges))
    counted: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(state, "total_count", counted)

    def published(*, depth: int) -> int:
        with app.app_context():
            db.session.execute(sa.update(runs).values(published_at=later(-60)))
            db.session.commit()
        sent.clear()
        monkeypatch.setattr(publisher, "depth", lambda queues: depth)
        keeper._refill(half_full=False)
        return len(sent)

    with app.app_context():
        KeeperShort.start_many([{}] * 8)
        db.session.commit()
    assert published(depth=0) == 8
    assert published(depth=6) == 2
    assert published(depth=100_000) == 0
    assert keeper._hungry  # it looks again as soon as there is room
    assert published(depth=8) == 0
    assert published(depth=90) == 0
    # Other tasks come through the same queue: the messages that wait may all be theirs.
    counted.update({"shop.mail": 30, "KeeperShort.end": 10})
    assert published(depth=8) == 6
    counted.update({"shop.mail": 1000})
    assert published(depth=90) == 8
    assert published(depth=100) == 0
    counted.update({"KeeperShort.end": 100_000})
    assert published(depth=8) == 0


def test_a_purge_that_is_not_done_goes_on_before_the_next_sweep(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    runtime.worker_id = "w"
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    looks: list[bool] = []

    def purge(*args: t.Any) -> bool:
        looks.append(True)
        return len(looks) < 3

    monkeypatch.setattr(keeper_module, "purge", purge)
    for purged in (1, 2, 3, 3):
        keeper._look()
        assert len(looks) == purged


def record_connections(keeper: Keeper) -> tuple[list[t.Any], list[t.Any]]:
    """Record the connections that a keeper opens and closes from now on."""
    opened: list[t.Any] = []
    closed: list[t.Any] = []
    sa.event.listen(keeper._engine, "connect", lambda connection, _: opened.append(connection))
    sa.event.listen(keeper._engine, "close", lambda connection, _: closed.append(connection))
    return opened, closed


def test_a_look_takes_one_connection_and_leaves_none(make_app: MakeApp, database_url: str) -> None:
    runtime = runtime_of(make_app(database_url))
    runtime.worker_id = "w"
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    opened, closed = record_connections(keeper)
    keeper.look()
    assert len(opened) == 1
    assert closed == opened


def test_a_hungry_keeper_keeps_its_connection(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    runtime.worker_id = "w"
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    opened, closed = record_connections(keeper)
    monkeypatch.setattr(keeper, "_refill", lambda half_full: setattr(keeper, "_hungry", True))
    monkeypatch.setattr(keeper, "join", lambda timeout: None)
    for _ in range(3):
        keeper.look()
    assert (len(opened), closed) == (1, [])
    keeper.stop()
    assert closed == opened


def test_a_hungry_keeper_refills_between_two_looks(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(keeper_module, "HUNGRY_SECONDS", 0.001)
    runtime = runtime_of(make_app(sqlite_url))
    keeper = Keeper(runtime, FakeConsumer(runtime.celery, "celery"))
    refills: list[bool] = []
    refilled_before: list[int] = []

    def look() -> None:
        refilled_before.append(len(refills))
        keeper._hungry = len(refilled_before) < 3
        if len(refilled_before) == 4:
            keeper._stopped.set()

    monkeypatch.setattr(keeper, "look", look)
    monkeypatch.setattr(keeper, "_refill", lambda half_full: refills.append(half_full))
    keeper.run()
    first, second, third, fourth = refilled_before
    assert first == 0
    assert min(second, third - second) >= 3
    assert fourth == third  # it was no longer hungry
    assert all(refills)
