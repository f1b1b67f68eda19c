"""Real workers: pools and brokers, the keeper's row, shutdown, forks, and what is refused."""

from __future__ import annotations

import collections
import json
import os
import signal
import sys
import time
import typing as t
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from celery.concurrency import prefork, solo
from celery.concurrency import thread as threads
from celery.signals import worker_init
from kombu import Producer, Queue
from sqlalchemy.pool import NullPool

from flask_sequence import Status, __version__
from flask_sequence.rows.models import FORMAT
from flask_sequence.runtime import TASK, runtime_of
from flask_sequence.testing import drain
from flask_sequence.worker.signals import (
    _can_keep,
    _main_pids,
    _on_init,
    _time_limit,
    _warn_of_connections,
    _warn_of_driver,
    run_worker,
)
from tests.conftest import create_tables
from tests.support import services
from tests.support.application import db
from tests.support.servers import PostgreSQLServer, RedisServer
from tests.support.stepping import be_worker
from tests.support.waiting import meanwhile, wait_until
from tests.support.workers import ROOT, Worker, write_module
from tests.support.working import (
    FOLDER,
    Scene,
    WorkAsking,
    WorkBackend,
    WorkGated,
    WorkKept,
    WorkTwo,
)

if t.TYPE_CHECKING:
    from flask import Flask

    from tests.support.services import Broker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., Worker]

POOLS = {
    "prefork": ("-c", "2"),
    "threads": ("-P", "threads", "-c", "2"),
    "solo": ("-P", "solo"),
}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options for each pool in turn."""
    return POOLS[request.param]


def check_all_done(scene: Scene, ids: list[int], timeout: float = 30) -> None:
    assert set(scene.wait(ids, timeout)) == {Status.FINISHED}
    expected = {(run_id, step): 1 for run_id in ids for step in ("First", "Second")}
    assert scene.effects() == expected
    assert len(scene.attempts()) == 2 * len(ids)


# Pools and brokers


def test_every_pool_on_every_broker(
    make_app: MakeApp,
    sqlite_url: str,
    broker: Broker,
    pool: tuple[str, ...],
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    scene = Scene.make(make_app, tmp_path, sqlite_url, broker.config())
    worker = start_worker(scene.source, *pool, env=scene.env)
    check_all_done(scene, scene.start(WorkTwo, 20))
    assert ("enforces no time limits" in worker.log) == ("-P" in pool)
    assert worker.stop() == 0
    assert "Traceback" not in worker.log
    assert scene.workers() == []


def test_gevent_too(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    pytest.importorskip("gevent")
    scene = Scene.make(make_app, tmp_path, postgresql_url)
    worker = start_worker(scene.source, "-P", "gevent", "-c", "4", celery=True, env=scene.env)
    (gated,) = scene.start(WorkGated)
    wait_until(lambda: scene.attempts("Gate"))
    ids = scene.start(WorkTwo, 5)  # beside the one that waits
    assert set(scene.wait(ids)) == {Status.FINISHED}
    scene.open()
    assert scene.wait([gated]) == [Status.FINISHED]
    assert worker.stop() == 0


def test_a_run_that_waits_for_another_try_holds_no_slot(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    scene = Scene.make(make_app, tmp_path, sqlite_url)
    start_worker(scene.source, "-c", "1", env=scene.env)
    (asking,) = scene.start(WorkAsking)
    wait_until(lambda: len(scene.attempts("Asking")) > 1)
    assert scene.wait(scene.start(WorkTwo)) == [Status.FINISHED]
    assert scene.run(asking).status is not Status.FINISHED
    scene.open()
    assert scene.wait([asking]) == [Status.FINISHED]
    assert scene.effects()[asking, "Asking"] == 1


@pytest.mark.parametrize("pool", ["gevent", "prefork"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycogreen", "psycopg", "mysqldb", "pymysql"])
def test_a_driver_that_stops_all_greenlets_is_warned_of(
    make_app: MakeApp,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
    pool: str,
    driver: str,
) -> None:
    app = make_app(sqlite_url)
    runtime = runtime_of(app)
    be_worker(app)
    assert runtime.worker is not None
    callback = SimpleNamespace(get_wait_callback=lambda: print if driver == "psycogreen" else None)
    driver_name = "psycopg2" if driver == "psycogreen" else driver
    dialect = SimpleNamespace(driver=driver_name, dbapi=SimpleNamespace(extensions=callback))
    runtime.worker.engine = t.cast("sa.Engine", SimpleNamespace(dialect=dialect))
    kind = type("TaskPool", (), {"__module__": f"celery.concurrency.{pool}"})
    _warn_of_driver(runtime, kind())
    blocks = pool == "gevent" and driver in {"psycopg2", "mysqldb"}
    assert ["psycogreen" in line for line in caplog.messages] == [True] * blocks


@pytest.mark.parametrize(
    ("options", "pool", "slots", "most"),
    [
        ({}, threads.TaskPool, 15, None),
        ({}, threads.TaskPool, 16, 15),
        ({}, prefork.TaskPool, 16, None),
        ({}, solo.TaskPool, 16, None),
        ({"pool_size": 16}, threads.TaskPool, 20, None),
        ({"pool_size": 4, "max_overflow": 0}, threads.TaskPool, 5, 4),
        ({"pool_size": 4, "max_overflow": -1}, threads.TaskPool, 500, None),
        ({"pool_size": 0}, threads.TaskPool, 500, None),
        ({"poolclass": NullPool}, threads.TaskPool, 500, None),
    ],
)
def test_more_slots_than_connections_are_warned_of(
    make_app: MakeApp,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, t.Any],
    pool: type[t.Any],
    slots: int,
    most: int | None,
) -> None:
    app = make_app(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options)
    runtime = runtime_of(app)
    be_worker(app)
    _warn_of_connections(runtime, object.__new__(pool), slots)
    cure = f"{{'pool_size': {slots}}}, or start it with -c {most}."
    assert [cure in line for line in caplog.messages] == [True] * (most is not None)


def test_a_worker_with_more_slots_than_connections_says_so(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    scene = Scene.make(make_app, tmp_path, sqlite_url)
    worker = start_worker(scene.source, "-P", "threads", "-c", "16", env=scene.env)
    worker.wait_for("{'pool_size': 16}")
    assert worker.log.count("{'pool_size': 16}") == 1


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({}, True),
        ({"pool_size": 2, "max_overflow": 1}, True),
        ({"pool_size": 2, "max_overflow": 0}, False),
        ({"poolclass": NullPool}, True),
    ],
)
def test_a_connection_is_kept_where_the_pool_has_more(
    make_app: MakeApp, postgresql_url: str, options: dict[str, t.Any], keeps: bool
) -> None:
    app = make_app(postgresql_url, SQLALCHEMY_ENGINE_OPTIONS=options)
    with app.app_context():
        assert _can_keep(db.engine) == keeps


def test_a_connection_is_kept_by_processes_that_perform_one_step_at_a_time(
    make_app: MakeApp,
    database_url: str,
    pool: tuple[str, ...],
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    scene = Scene.make(make_app, tmp_path, database_url)
    start_worker(scene.source, *pool, env=scene.env)
    assert scene.wait(scene.start(WorkKept)) == [Status.FINISHED]
    keeps = pool == POOLS["prefork"] and database_url.startswith("postgresql")
    assert scene.notes() == [str(keeps)]


LISTENERS = """
    import sqlalchemy as sa
    from flask import current_app

    with app.app_context():
        engine = db.engine
    for name in ("do_connect", "connect", "checkout", "checkin"):
        def listen(*args, **options):
            current_app.config["SQLALCHEMY_DATABASE_URI"]
        sa.event.listen(engine, name, listen)
"""


def test_listeners_that_want_the_application(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    scene = Scene.make(make_app, tmp_path, postgresql_url, more=LISTENERS)
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    (run_id,) = scene.start(WorkGated)
    wait_until(lambda: scene.attempts("Gate"))
    os.kill(scene.attempts("Gate")[0][1], signal.SIGKILL)
    scene.open()
    assert scene.wait([run_id]) == [Status.FINISHED]
    assert worker.stop() == 0
    assert "outside of application context" not in worker.log
    assert "trouble" not in worker.log


@pytest.mark.parametrize(
    ("options", "annotation", "shortest"),
    [
        ((None, None), {}, None),
        ((50, None), {}, 50),
        ((50, 40), {}, 40),
        ((50, 40), {"time_limit": 30}, 30),
        ((None, None), {"soft_time_limit": 20}, 20),
    ],
)
def test_limits_of_all_tasks_are_those_of_a_message(
    make_app: MakeApp,
    sqlite_url: str,
    options: tuple[float | None, float | None],
    annotation: dict[str, float],
    shortest: float | None,
) -> None:
    settings = {"broker_url": "memory://", "task_annotations": {"*": annotation}}
    celery = runtime_of(make_app(sqlite_url, settings)).celery
    hard, soft = options
    worker = SimpleNamespace(app=celery, time_limit=hard, soft_time_limit=soft)
    assert _time_limit(worker) == shortest


def test_a_worker_outlives_a_channel_that_its_broker_closes(
    make_app: MakeApp, sqlite_url: str
) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    celery = runtime.celery
    assert not celery.conf.broker_channel_error_retry
    try:
        _on_init(SimpleNamespace(app=celery, time_limit=None, soft_time_limit=None))
        assert celery.conf.broker_channel_error_retry
    finally:
        _main_pids.clear()
        runtime.worker = None


@pytest.mark.parametrize(("limit", "ends"), [("30", True), ("600", False)])
def test_a_burst_uses_up_no_limit_of_all_tasks(
    make_app: MakeApp,
    sqlite_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
    limit: str,
    ends: bool,
) -> None:
    scene = Scene.make(make_app, tmp_path, sqlite_url, SEQUENCE_BURST_SECONDS=60)
    worker = start_worker(scene.source, "-c", "1", "--time-limit", limit, env=scene.env)
    ids = scene.start(WorkGated)
    wait_until(lambda: scene.attempts("Gate"))
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.4)
    scene.open()
    assert scene.wait(ids) == [Status.FINISHED]
    assert ("Task WorkGated.Second[" in worker.log) == ends
    assert worker.stop() == 0


# The keeper's row, and shutdown


def test_the_row_of_a_worker_is_kept_while_a_step_is_performed(
    make_app: MakeApp,
    postgresql_url: str,
    pool: tuple[str, ...],
    tmp_path: Path,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene.make(make_app, tmp_path, postgresql_url, SEQUENCE_BURST_SECONDS=60)
    worker = start_worker(scene.source, *pool, env=scene.env)
    (row,) = wait_until(scene.workers)
    assert row.pid == worker.pid
    ids = scene.start(WorkGated, 6)
    wait_until(lambda: scene.attempts("Gate"))
    # Also by the solo pool, whose only thread for tasks is busy.
    wait_until(lambda: scene.workers()[0].seen_until > row.seen_until)
    assert len(scene.workers()) == 1
    assert scene.held() == len(scene.attempts("Gate"))
    worker.send(signal.SIGTERM)
    worker.wait_for("Warm shutdown")
    scene.open()
    in_hand = scene.attempts("Gate")
    assert worker.wait(15) == 0
    assert scene.held() == 0
    assert scene.workers() == []
    effects = scene.effects()
    for run_id, _ in in_hand:
        assert effects[run_id, "Gate"] == 1
        assert (run_id, "Second") not in effects  # a burst ends, too
    assert scene.attempts("Gate")[: len(in_hand)] == in_hand
    # The rest is done by whoever comes next.
    monkeypatch.setenv(FOLDER, str(tmp_path))
    drain(scene.app)
    assert scene.statuses() == {Status.FINISHED: len(ids)}
    assert set(scene.effects().values()) == {1}
    assert len(scene.attempts("Gate")) == len(ids)


# Forks


def test_children_have_connections_of_their_own(
    make_app: MakeApp,
    postgresql_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    more = """
        import os, pathlib
        with app.app_context():
            pid = db.session.scalar(db.text("select pg_backend_pid()"))
            db.session.remove()
            assert db.engine.pool.checkedin() == 1
        pathlib.Path(os.environ["FLASK_SEQUENCE_TEST_FOLDER"], "parent").write_text(str(pid))
    """
    scene = Scene.make(make_app, tmp_path, postgresql_url, more=more)
    worker = start_worker(scene.source, "-c", "3", env=scene.env)
    assert set(scene.wait(scene.start(WorkBackend, 9))) == {Status.FINISHED}
    backends = collections.defaultdict(set)
    for note in scene.notes():
        process, backend = map(int, note.split())
        backends[process].add(backend)
    assert len(backends) > 1
    assert set(backends) <= set(worker.children)
    parent = int((tmp_path / "parent").read_text())
    of_children = [backend for each in backends.values() for backend in each]
    assert len(set(of_children)) == len(of_children)
    assert parent not in of_children
    with scene.app.app_context():  # the parent's own was not closed by a child
        alive = db.session.scalars(sa.text("select pid from pg_stat_activity")).all()
    assert parent in alive


def test_a_worker_takes_a_connection_for_each_slot_and_one(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    """The one is the keeper's."""
    scene = Scene.make(make_app, tmp_path, postgresql_url)
    engine = sa.create_engine(postgresql_url, poolclass=NullPool)
    most = [0]

    def look() -> None:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'"
                " AND datname = current_database()"
            )
            most.append(found.scalar_one())

    ids = [*scene.start(WorkGated, 2), *scene.start(WorkTwo, 30)]
    with meanwhile(look, interval=0.005):
        worker = start_worker(scene.source, "-c", "2", env={**scene.env, "PGAPPNAME": "counted"})
        wait_until(lambda: len(scene.attempts("Gate")) == 2)
        swept = scene.workers()[0].seen_until
        wait_until(lambda: scene.workers()[0].seen_until > swept)
        scene.open()
        assert set(scene.wait(ids)) == {Status.FINISHED}
    assert worker.stop() == 0
    assert 2 < max(most) <= 2 + 1


def test_children_are_replaced_while_the_keeper_works(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    broker = services.make_broker("redis")
    settings: dict[str, t.Any] = {"SEQUENCE_SWEEP_SECONDS": 0.5, "SEQUENCE_LEASE_SECONDS": 1}
    scene = Scene.make(make_app, tmp_path, postgresql_url, broker.config(), **settings)
    worker = start_worker(scene.source, "-c", "2", "--max-tasks-per-child", "1", env=scene.env)
    ids = scene.start(WorkTwo, 5)
    assert set(scene.wait(ids, 40)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}
    processes = {pid for _, pid in scene.attempts()}
    assert len(processes) == len(ids)
    assert worker.stop(20) == 0
    broker.clear()


# What is refused


def refused(tmp_path: Path, module: str, *, celery: bool) -> str:
    worker = Worker(tmp_path, module, "-c", "1", celery=celery).launch()
    try:
        assert worker.wait(30) == 1
        return worker.log
    finally:
        worker.kill()


@pytest.mark.parametrize("celery", [False, True], ids=["flask", "celery"])
def test_what_cannot_work_is_refused(make_app: MakeApp, tmp_path: Path, celery: bool) -> None:
    memory = Scene.make(make_app, tmp_path, "sqlite://")
    module = write_module(tmp_path, memory.source, "memory_app")
    assert "SQLite in memory, which a worker cannot share" in refused(
        tmp_path, module, celery=celery
    )
    if not celery:
        return  # its group of commands imports the modules itself: see test_cli
    missing = Scene.make(
        make_app, tmp_path, "sqlite:///x.sqlite", SEQUENCE_IMPORTS=("no.such.module",)
    )
    module = write_module(tmp_path, missing.source, "missing_app")
    log = refused(tmp_path, module, celery=celery)
    assert "SEQUENCE_IMPORTS names 'no.such.module'" in log
    assert "Traceback" not in log
    write_module(tmp_path, "import nothing_like_this", "broken_module")
    broken = Scene.make(
        make_app, tmp_path, "sqlite:///x.sqlite", SEQUENCE_IMPORTS=("broken_module",)
    )
    module = write_module(tmp_path, broken.source, "broken_app")
    log = refused(tmp_path, module, celery=celery)
    assert "No module named 'nothing_like_this'" in log
    assert "broken_module.py" in log


def test_what_can_never_work_ends_a_worker_with_its_cure(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path
) -> None:
    empty = f"sqlite:///{tmp_path / 'empty.sqlite'}"
    config = {
        "reddis": (sqlite_url, {"broker_url": "reddis://localhost"}, "did you mean redis://?"),
        "number": (sqlite_url, {"broker_url": "redis://localhost/x"}, "Database is int"),
        "tables": (empty, None, "'flask sequence init' once, and 'flask db upgrade'"),
    }
    for name, (url, celery, told) in config.items():
        scene = Scene.make(make_app, tmp_path, url, celery)
        log = refused(tmp_path, write_module(tmp_path, scene.source, f"{name}_app"), celery=False)
        lines = [line for line in log.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1
        assert told in lines[0]
        assert "Traceback" not in log


def test_modules_beside_the_application_are_imported_under_celery_too(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path
) -> None:
    """Its command finds the application in the current folder, which is in no path then."""
    source = """
        from flask_sequence import BaseSequence, step

        @step
        def beside(data):
            pass

        class Beside(BaseSequence):
            steps = (beside,)
    """
    module = write_module(tmp_path, source, "beside_sequences")
    scene = Scene.make(make_app, tmp_path, sqlite_url, SEQUENCE_IMPORTS=(module,))
    name = write_module(tmp_path, scene.source, "beside_app")
    worker = Worker(
        tmp_path, name, "-c", "1", celery=True, env={**scene.env, "PYTHONPATH": str(ROOT)}
    )
    worker.command = [str(Path(sys.executable).with_name("celery")), *worker.command[3:]]
    with worker:
        assert "Beside" in worker.log.partition("; database")[0]


# What it says of itself


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_a_worker_says_what_it_works_with_at_every_level(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path, level: str
) -> None:
    scene = Scene.make(
        make_app, tmp_path, postgresql_url, {"broker_url": "redis://:hush@localhost:1/3"}
    )
    module = write_module(tmp_path, scene.source)
    worker = Worker(tmp_path, module, "-c", "1", "-Q", "b,a", "--loglevel", level, env=scene.env)
    worker.launch()
    try:
        worker.wait_for("flask-sequence 0.", 30)
    finally:
        worker.kill()
    (line,) = [line for line in worker.log.splitlines() if "flask-sequence 0." in line]
    assert f"flask-sequence {__version__}: sequences " in line
    assert "WorkTwo" in line
    shown = sa.make_url(postgresql_url).render_as_string(hide_password=True)
    assert line.endswith(f"; database {shown}; broker redis://:**@localhost:1/3; queues a, b")
    assert "hush" not in worker.log


@pytest.mark.parametrize("code", [None, 0, 1])
def test_the_exit_code_is_the_workers(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def worker_main(celery: t.Any, arguments: list[str]) -> None:
        worker_init.send(sender=Mock(exitcode=code))

    monkeypatch.setattr(Celery, "worker_main", worker_main)
    monkeypatch.setattr("flask_sequence.worker.signals.runtime_of_worker", lambda celery: None)
    assert run_worker(runtime_of(sqlite_app).celery, []) == (code or 0)


# Messages that nobody sent, and servers that go away


def test_forged_messages_do_not_end_a_worker(
    make_app: MakeApp,
    sqlite_url: str,
    broker: Broker,
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    scene = Scene.make(make_app, tmp_path, sqlite_url, broker.config())
    worker = start_worker(scene.source, "-c", "1", env=scene.env)
    celery = runtime_of(scene.app).celery
    headers = {"task": TASK, "id": "forged", "lang": "py", "shadow": "forged"}
    plain = {"content_type": "application/json", "content_encoding": "utf-8"}
    good: dict[str, t.Any] = {"format": FORMAT, "id": 1, "version": 0}
    # One that is not of three parts ends any Celery worker, whatever its tasks are.
    bodies = [
        [[], {**good, "id": "1"}, {}],
        [[1, 2, 3], good, {}],
        [[], {**good, "task": 2, "args": 3}, {}],  # a good one, of a run that is not there,
        [[], {"x": "y" * 1_000_000}, {}],
        [[], "no mapping", {}],
    ]
    with celery.connection_for_write() as connection:
        producer: t.Any = Producer(connection.default_channel)
        queue = Queue(broker.queue, routing_key=broker.queue, exchange=broker.queue)
        send = {"routing_key": broker.queue, "exchange": queue.exchange, "declare": [queue]}
        for body in bodies:
            producer.publish(json.dumps(body), headers=headers, **plain, **send)
        pickled = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
        producer.publish(b"\x80\x04N.", headers=headers, **pickled, **send)
        producer.publish("{", headers=headers, **plain, **send)
        producer.publish("[]", **plain, **send)
    check_all_done(scene, scene.start(WorkTwo, 3))
    assert worker.exit_code is None
    assert worker.log.count("Left alone: a message that is not a nudge") == 3
    assert len(worker.log) < 100_000


def test_a_flushed_broker_heals(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    with RedisServer() as server:
        scene = Scene.make(make_app, tmp_path, sqlite_url, {"broker_url": server.url})
        scene.start(WorkTwo, 10)
        with redis.Redis.from_url(server.url) as client:
            assert client.flushall()
            start_worker(scene.source, "-c", "1", env=scene.env)
            ids = scene.start(WorkGated, 5)
            wait_until(lambda: scene.attempts("Gate"))
            assert client.flushall()
            scene.open()
        assert set(scene.wait([*range(1, 11), *ids], 15)) == {Status.FINISHED}
    assert set(scene.effects().values()) == {1}


UNANSWERED = "The database does not answer ("


def test_a_database_that_is_down_is_waited_for(
    make_app: MakeApp, tmp_path: Path, start_worker: StartWorker
) -> None:
    with PostgreSQLServer() as server:
        create_tables(server.url)
        scene = Scene.make(make_app, tmp_path, server.url)
        worker = start_worker(scene.source, "-c", "1", env=scene.env)
        pid = worker.pid
        check_all_done(scene, scene.start(WorkTwo))
        server.kill()
        down = time.monotonic()
        wait_until(lambda: worker.log.count(UNANSWERED) >= 3, 15)
        # Once a sweep, which is each second here, and not for each duty.
        assert worker.log.count(UNANSWERED) <= time.monotonic() - down + 2
        assert "The keeper could not" not in worker.log
        server.start()
        with scene.app.app_context():
            db.engine.dispose()
        assert scene.wait(scene.start(WorkTwo)) == [Status.FINISHED]
        assert worker.pid == pid
        assert worker.stop() == 0


def test_a_worker_starts_before_its_database(
    make_app: MakeApp, tmp_path: Path, start_worker: StartWorker
) -> None:
    with PostgreSQLServer() as server:
        create_tables(server.url)
        scene = Scene.make(make_app, tmp_path, server.url)
        server.kill()
        worker = start_worker(scene.source, "-c", "1", env=scene.env)
        worker.wait_for(UNANSWERED)
        assert "correct SQLALCHEMY_DATABASE_URI" in worker.log
        server.start()
        assert scene.wait(scene.start(WorkTwo)) == [Status.FINISHED]
