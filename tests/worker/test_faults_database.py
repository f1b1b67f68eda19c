"""What the database does: it is restarted, locked, full, read-only, or its answer is lost."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence import Status, StepRun, StepStatus
from flask_sequence.engine import failing
from flask_sequence.engine.attempt import FRESH_TRIES
from flask_sequence.engine.runner import advance
from tests.conftest import create_tables
from tests.support import services
from tests.support.application import Effect, db
from tests.support.servers import MariaDBServer, PostgreSQLServer
from tests.support.stepping import Stepping, make_step, note
from tests.support.waiting import wait_until
from tests.support.working import Scene, WorkGated, WorkTwo, WorkWritten

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.workers import Worker

MakeApp = t.Callable[..., "Flask"]
StartWorker = t.Callable[..., "Worker"]

STOP_AT_COMMIT = """
    import os, pathlib
    from flask_sequence.rows import moves
    from tests.support.waiting import wait_until

    with app.app_context():
        dialect = db.engine.dialect
    here = pathlib.Path(os.environ["FLASK_SEQUENCE_TEST_FOLDER"])
    keeper = os.getpid()

    def stopping(real, ask):
        def call(connection, *args):
            before, after, reached = (here / name for name in ("before", "after", "reached"))
            if os.getpid() == keeper:
                return real(connection, *args)
            if after.exists():
                real(connection, *args)
            elif not before.exists():
                return real(connection, *args)
            before.unlink(missing_ok=True)
            after.unlink(missing_ok=True)
            reached.touch()
            wait_until(lambda: not reached.exists(), 60, interval=0.02)
            ask(connection)  # the answer that the server did not give
            return real(connection, *args)

        return call

    dialect.do_commit = stopping(dialect.do_commit, lambda c: c.cursor().execute("select 1"))
    moves.make_and_commit = stopping(
        moves.make_and_commit, lambda c: c.exec_driver_sql("select 1")
    )
"""
"""Lines for a worker's module: a step's next commit waits, before it or its answer."""


def check_unharmed(scene: Scene, worker: Worker, pid: int) -> None:
    """Each effect is there once, nothing counts as a failure, and the worker is the same."""
    assert (worker.exit_code, worker.pid) == (None, pid)
    assert set(scene.effects().values()) == {1}
    with scene.app.app_context():
        ends = set(db.session.scalars(sa.select(StepRun.status)))
    assert ends == {StepStatus.FINISHED}
    assert scene.held() == 0


@pytest.mark.parametrize("make_server", [PostgreSQLServer, MariaDBServer])
def test_a_database_that_is_restarted_under_a_worker(
    make_app: MakeApp,
    tmp_path: Path,
    start_worker: StartWorker,
    make_server: type[PostgreSQLServer | MariaDBServer],
) -> None:
    broker = services.make_broker("redis")
    with make_server() as server:
        is_postgresql = make_server is PostgreSQLServer
        url = server.url if is_postgresql else services.create_database(server.url)
        create_tables(url)
        scene = Scene.make(make_app, tmp_path, url, broker.config(), more=STOP_AT_COMMIT)
        worker = start_worker(scene.source, "-c", "1", env=scene.env)
        pid, gate, reached = worker.pid, tmp_path / "open", tmp_path / "reached"

        def restart() -> None:
            server.crash()
            with scene.app.app_context():
                db.engine.dispose()

        def done(*ids: int) -> None:
            assert set(scene.wait(ids, 40)) == {Status.FINISHED}

        done(*scene.start(WorkTwo))
        restart()  # while idle
        done(*scene.start(WorkTwo))
        for moment in ("before", "after"):  # at the claim
            (tmp_path / moment).touch()
            (run_id,) = scene.start(WorkTwo)
            wait_until(reached.exists)
            restart()
            reached.unlink()
            done(run_id)
        (run_id,) = scene.start(WorkWritten)  # in mid-step, with writes
        wait_until(lambda: scene.attempts("Written"))
        restart()
        gate.touch()
        done(run_id)
        assert len(scene.attempts("Written")) == 2
        gate.unlink()
        for moment in ("before", "after"):  # at the commit of a step
            (run_id,) = scene.start(WorkGated)
            wait_until(lambda: run_id in dict(scene.attempts("Gate")))  # noqa: B023
            (tmp_path / moment).touch()
            gate.touch()
            wait_until(reached.exists)
            restart()
            reached.unlink()
            done(run_id)
            tries = [number for number, _ in scene.attempts("Gate")].count(run_id)
            assert tries == (2 if moment == "before" else 1)
            gate.unlink()
        check_unharmed(scene, worker, pid)
        assert worker.stop() == 0
    broker.clear()


# A commit whose answer is lost on the way


class Proxy:
    """Stands between an application and its database, and cuts where something is committed.

    :param url: The address of the database.
    """

    def __init__(self, url: str) -> None:
        parts = sa.make_url(url)
        self._target = (parts.host or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        moved = parts.set(host="127.0.0.1", port=port)
        self.url = moved.render_as_string(hide_password=False)
        self._claim_commits = parts.get_backend_name() == "postgresql"  # by itself
        self.plan: list[str | None] = []
        """What becomes of the next commits: "lost": only the answer; "never": the commit, too."""
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                cut = threading.Event()
                for way in ((client, server, False), (server, client, True)):
                    carry = threading.Thread(target=self._carry, args=(*way, cut), daemon=True)
                    carry.start()

    def _carry(
        self, source: socket.socket, target: socket.socket, back: bool, cut: threading.Event
    ) -> None:
        with source, target, contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if back and cut.is_set():
                    break  # the server has answered
                if not back and self._commits(chunk):
                    answer = self.plan.pop(0) if self.plan else None
                    if answer == "never":
                        break
                    if answer == "lost":
                        cut.set()
                target.sendall(chunk)
            for end_of in (source, target):
                with contextlib.suppress(OSError):
                    end_of.shutdown(socket.SHUT_RDWR)

    def _commits(self, chunk: bytes) -> bool:
        claims = b"sequence_runs.attempt + " in chunk
        return b"COMMIT" in chunk.replace(b"COMMITTED", b"") or (claims and self._claim_commits)


@pytest.fixture(params=["postgresql", "mariadb"])
def proxy(request: pytest.FixtureRequest) -> t.Iterator[Proxy]:
    proxy = Proxy(request.getfixturevalue(f"{request.param}_url"))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("answer", ["lost", "never"])
@pytest.mark.parametrize("at", ["claim", "step", "last step"])
def test_a_connection_that_is_cut_in_a_commit(
    make_app: MakeApp, proxy: Proxy, answer: str, at: str
) -> None:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note("body")

    stepping = Stepping(make_app(proxy.url, SEQUENCE_BURST_SECONDS=60))
    run_id = stepping.start(make_step(body, "first"), make_step(body, "last"))
    proxy.plan += [None] * ["claim", "step", "last step"].index(at) + [answer]
    assert advance(stepping.runtime, run_id, 0).status is Status.FINISHED
    assert proxy.plan == []
    assert stepping.notes() == ["body"] * 2
    assert bodies == [1] * (3 if answer == "never" and at != "claim" else 2)
    assert stepping.history(run_id) == [
        ("first", 1, StepStatus.FINISHED),
        ("last", 1, StepStatus.FINISHED),
    ]
    with stepping.app.app_context():
        db.engine.dispose()


# What the database refuses, or takes too long for: its own condition, and no failure of the step


def check_waits_and_heals(stepping: Stepping, body: t.Callable[[t.Any], None]) -> None:
    """A step that the database refuses waits without a failure; once it is healed, it is done."""
    healed = threading.Event()

    def perform(step: t.Any) -> None:
        note("before")
        db.session.flush()
        if not healed.is_set():
            body(step)
        note("after")

    run_id = stepping.start(make_step(perform, max_retries=0))
    assert stepping.advance(run_id).status is Status.WAITING
    row = stepping.row(run_id)
    assert (row.status, row.retries, row.crashes) == (Status.WAITING, 0, 0)
    assert row.error
    assert (stepping.history(run_id), stepping.notes()) == ([], [])
    healed.set()
    assert stepping.advance(run_id).status is Status.FINISHED
    assert stepping.history(run_id) == [("perform", 2, StepStatus.FINISHED)]
    assert stepping.notes() == ["before", "after"]


def run_sql(*statements: str) -> t.Callable[[t.Any], None]:
    def body(step: t.Any) -> None:
        for statement in statements:
            db.session.execute(sa.text(statement))

    return body


@pytest.mark.parametrize(
    "statements",
    [
        ("SET LOCAL lock_timeout = 50", "LOCK TABLE sequence_workers"),
        ("SET TRANSACTION READ ONLY", "DELETE FROM effects"),
        ("DO $$ BEGIN RAISE 'x' USING ERRCODE = 'disk_full'; END $$",),
        ("DO $$ BEGIN RAISE 'x' USING ERRCODE = 'too_many_connections'; END $$",),
        ("SELECT pg_terminate_backend(pg_backend_pid())",),
    ],
    ids=["lock_timeout", "read-only", "disk full", "connections", "killed"],
)
def test_what_postgresql_refuses(
    postgresql_stepping: Stepping, statements: tuple[str, ...]
) -> None:
    with postgresql_stepping.connect() as holder:
        if "lock" in statements[0]:
            holder.execute(sa.text("LOCK TABLE sequence_workers IN ROW SHARE MODE"))
        check_waits_and_heals(postgresql_stepping, run_sql(*statements))


def idle_too_long(stepping: Stepping) -> None:
    pid = db.session.scalar(sa.text("SELECT pg_backend_pid()"))
    db.session.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 50"))
    gone = sa.text("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = :pid")

    def is_gone() -> bool:
        with stepping.connect() as other:
            return bool(other.scalar(gone, {"pid": pid}))

    wait_until(is_gone)


# A limit that the step itself exceeds, and would exceed again: its failure


def check_fails(stepping: Stepping, body: t.Callable[[], object]) -> None:
    """A step that exceeds a limit of the database is performed as often as its policy says."""
    bodies: list[int] = []

    def perform(step: t.Any) -> None:
        bodies.append(step.attempt)
        note("before")
        db.session.flush()
        body()
        db.session.execute(sa.select(1))

    made = make_step(perform, max_retries=1, default_retry_delay=0)
    run_id = stepping.start(made)
    assert stepping.advance(run_id).status is Status.WAITING
    assert stepping.advance(run_id).status is Status.FAILED
    row = stepping.row(run_id)
    assert (bodies, row.retries, row.waits, row.crashes) == ([1, 2], 1, 0, 0)
    assert row.error
    assert stepping.notes() == []


def test_a_step_that_idles_longer_than_postgresql_allows(postgresql_stepping: Stepping) -> None:
    check_fails(postgresql_stepping, lambda: idle_too_long(postgresql_stepping))


def test_a_statement_that_takes_longer_than_postgresql_allows(
    postgresql_stepping: Stepping,
) -> None:
    def sleep() -> None:
        db.session.execute(sa.text("SET LOCAL statement_timeout = 50"))
        db.session.execute(sa.text("SELECT pg_sleep(5)"))

    check_fails(postgresql_stepping, sleep)


def test_a_statement_that_takes_longer_than_mariadb_allows(mariadb_stepping: Stepping) -> None:
    statement = sa.text("SET STATEMENT max_statement_time = 0.05 FOR SELECT sleep(5)")
    check_fails(mariadb_stepping, lambda: db.session.execute(statement))


def test_a_row_that_mariadb_never_takes(
    mariadb_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "pause", lambda tries: None)
    bodies = 0

    def body(step: t.Any) -> None:
        nonlocal bodies
        bodies += 1
        packet = db.session.scalar(sa.text("SELECT @@max_allowed_packet"))
        note("x" * (packet + 1))

    run_id = mariadb_stepping.start(make_step(body, max_retries=1, default_retry_delay=0))
    crashes = mariadb_stepping.runtime.settings.max_crashes
    for _ in range(crashes + 5):
        if mariadb_stepping.advance(run_id).status is Status.FAILED:
            break
    row = mariadb_stepping.row(run_id)
    assert (row.status, row.worker_id) == (Status.FAILED, None)
    assert row.error
    # The server may only end the connection, as if it were lost.
    assert bodies in (2, FRESH_TRIES + crashes + 2)


def test_a_lost_connection_that_the_step_swallows(postgresql_stepping: Stepping) -> None:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note("once")
        if len(bodies) == 1:
            idle_too_long(postgresql_stepping)
            with contextlib.suppress(sa.exc.DBAPIError):
                db.session.execute(sa.select(1))

    assert postgresql_stepping.run(make_step(body, max_retries=0)).status is Status.FINISHED
    assert (bodies, postgresql_stepping.notes()) == ([1, 1], ["once"])


@pytest.mark.parametrize("swallows", [False, True])
def test_a_deadlock_on_postgresql(postgresql_stepping: Stepping, swallows: bool) -> None:
    with postgresql_stepping.connect() as connection:
        rows = [{"id": -n, "step": "", "note": "row"} for n in (2, 1)]
        connection.execute(sa.insert(Effect), rows)
    bodies, thread = [], threading.Thread(target=lambda: other())

    def touch(connection: t.Any, row: int) -> None:
        connection.execute(sa.update(Effect).where(Effect.id == -row).values(step="touched"))

    def other() -> None:
        with postgresql_stepping.connect() as connection:
            connection.execute(sa.text("SET LOCAL deadlock_timeout = '10s'"))  # gives in last
            touch(connection, 2)
            has_two.set()
            touch(connection, 1)

    has_two = threading.Event()

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note("mine")
        db.session.flush()
        touch(db.session, 1)
        if len(bodies) == 1:
            db.session.execute(sa.text("SET LOCAL deadlock_timeout = '50ms'"))
            thread.start()
            assert has_two.wait(10)
        with contextlib.suppress(sa.exc.OperationalError) if swallows else contextlib.nullcontext():
            touch(db.session, 2)

    run_id = postgresql_stepping.start(make_step(body, max_retries=0))
    assert postgresql_stepping.advance(run_id).status is Status.FINISHED
    thread.join(20)
    assert bodies == [1, 1]
    assert postgresql_stepping.notes() == ["row", "row", "mine"]


@pytest.mark.parametrize(
    "statements",
    [
        ("KILL CONNECTION_ID()",),
        ("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1021",),
        ("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1290",),
        ("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1114",),
    ],
    ids=["killed", "disk full", "--read-only", "table full"],
)
def test_what_mariadb_refuses(mariadb_stepping: Stepping, statements: tuple[str, ...]) -> None:
    check_waits_and_heals(mariadb_stepping, run_sql(*statements))


@pytest.mark.parametrize("pragma", ["query_only = ON", "max_page_count = 1"])
def test_what_sqlite_refuses(sqlite_stepping: Stepping, pragma: str) -> None:
    def body(step: t.Any) -> None:
        connection: t.Any = db.session.connection().connection.dbapi_connection
        connection.execute(f"PRAGMA {pragma}")
        try:
            for _ in range(100):
                note("x" * 4000)
                db.session.flush()
        finally:
            connection.execute("PRAGMA query_only = OFF")
            connection.execute("PRAGMA max_page_count = 1000000")

    check_waits_and_heals(sqlite_stepping, body)


# SQLite, locked by another program


def test_sqlite_that_others_lock_for_long(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    broker = services.make_broker("redis")
    options = {"connect_args": {"timeout": 1.0}}
    scene = Scene.make(
        make_app, tmp_path, sqlite_url, broker.config(), SQLALCHEMY_ENGINE_OPTIONS=options
    )
    worker = start_worker(scene.source, "-c", "2", env=scene.env)
    pid = worker.pid
    holder = sqlite3.connect(str(sa.make_url(sqlite_url).database), isolation_level=None)
    with contextlib.closing(holder):
        ids = [*scene.start(WorkGated), *scene.start(WorkTwo, 10)]
        wait_until(lambda: scene.attempts("Gate"))
        began = time.monotonic()
        holder.execute("BEGIN IMMEDIATE")
        scene.open()
        wait_until(lambda: time.monotonic() - began > 2.5)
        holder.execute("ROLLBACK")
    assert set(scene.wait(ids, 30)) == {Status.FINISHED}
    check_unharmed(scene, worker, pid)
    assert worker.stop() == 0
    broker.clear()
