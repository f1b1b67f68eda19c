"""A database, a broker, and workers that come back when they are killed."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import tempfile
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from tests.conftest import create_tables
from tests.crash.sequences import OTHER, marks
from tests.support import services
from tests.support.application import Effect, close_app, create_app, db
from tests.support.waiting import wait_until
from tests.support.workers import Worker, write_module
from tests.support.working import Scene

MORE = """
from tests.crash import points

points.install()
"""
SERVERS = {"postgresql": services.POSTGRESQL, "mariadb": services.MARIADB}
POOLS = {"prefork": (), "threads": ("--pool", "threads"), "solo": ("--pool", "solo")}
WAIT_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where something is tried, and how."""

    database: str = "postgresql"
    pool: str = "prefork"
    burst: float = 0.0
    lease: float = 3.0
    sweep: float = 1.0

    @property
    def config(self) -> dict[str, t.Any]:
        """More of ``app.config``."""
        return {
            "SEQUENCE_IMPORTS": ("tests.crash.sequences",),
            "SEQUENCE_BURST_SECONDS": self.burst,
            "SEQUENCE_LEASE_SECONDS": self.lease,
            "SEQUENCE_SWEEP_SECONDS": self.sweep,
            "SEQUENCE_MAX_CRASHES": 5,
        }

    @property
    def label(self) -> str:
        """Name it in a report."""
        return f"{self.database} {self.pool} burst {self.burst:g}"


@dataclass(frozen=True)
class Ended:
    """A run after its end."""

    id: int
    status: Status
    data: dict[str, t.Any]
    error: str | None
    history: list[tuple[str, int, str]]
    """Step, attempt and status of each attempt."""
    errors: list[str]
    """What was wrong with those that did not finish."""


@dataclass
class Arena:
    """A scene with all that it needs."""

    scene: Scene
    setting: Setting
    module: str
    other_url: str
    workers: list[Worker] = field(default_factory=list)

    def start_worker(self, slots: int, *, ready: bool = True) -> Worker:
        """Start another worker.

        :param slots: How many runs it performs at once.
        :param ready: Whether to wait until it takes messages.
        """
        options = (*POOLS[self.setting.pool], "-c", str(slots))
        worker = Worker(self.scene.folder, self.module, *options, env=self.scene.env).launch()
        self.workers.append(worker)
        if ready:
            self.wait_for_workers()
        return worker

    def wait_for_workers(self) -> None:
        """Wait until all workers take messages."""

        def is_ready(worker: Worker) -> bool:
            assert worker.exit_code is None, worker.log
            return worker.is_ready

        wait_until(lambda: all(map(is_ready, self.workers)), WAIT_SECONDS, message=self.logs)

    def kill(self, worker: Worker) -> float:
        """Kill a worker and its children, and give the time."""
        self.workers.remove(worker)
        worker.kill()
        return time.monotonic()

    def commit(self, sequence: type[t.Any], count: int = 1, arm: str | None = None) -> list[int]:
        """Start runs, and commit; where they are to be killed, lay it down for their process."""
        with self.scene.app.app_context():
            runs = [sequence.start(number=number) for number in range(count)]
            db.session.flush()
            ids = [t.cast(int, run.id) for run in runs]
            if arm is not None:
                for run_id in ids:
                    (self.scene.folder / f"arm-{run_id}").write_text(arm)
            db.session.commit()
        return ids

    def noted(self, name: str) -> list[list[str]]:
        """Give the words of each line that the workers wrote into a file."""
        file = self.scene.folder / name
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def attempts(self) -> dict[tuple[int, str], list[tuple[int, float]]]:
        """Give process and time of each attempt, by run and step."""
        found = collections.defaultdict(list)
        for run_id, step, pid, at in self.noted("attempts"):
            found[int(run_id), step].append((int(pid), float(at)))
        return found

    def wait_for_attempts(self, run_ids: t.Collection[int], step: str, count: int) -> None:
        """Wait until each run has made so many attempts at a step."""

        def made() -> bool:
            attempts = self.attempts()
            return all(len(attempts.get((run_id, step), ())) >= count for run_id in run_ids)

        wait_until(made, WAIT_SECONDS, message=self.logs)

    def wait(self, run_ids: t.Collection[int], seconds: float = WAIT_SECONDS) -> list[Ended]:
        """Wait until the runs have ended or the time is up, and give what became of them."""
        until = time.monotonic() + seconds
        statement = sa.select(sa.func.count()).select_from(SequenceRun)
        statement = statement.where(SequenceRun.id.in_(run_ids))
        open_ = (Status.WAITING, Status.RUNNING)
        with self.scene.app.app_context():
            while time.monotonic() < until:
                if not db.session.scalar(statement.where(SequenceRun.status.in_(open_))):
                    break
                db.session.rollback()
                time.sleep(0.05)
            runs = [db.session.get_one(SequenceRun, run_id) for run_id in run_ids]
            return [_ended(run) for run in runs]

    def effects(self) -> collections.Counter[tuple[int, str]]:
        """Count the rows of each run and step; those of the second bind as step ``marks``."""
        engine = sa.create_engine(self.other_url, poolclass=NullPool)
        with engine.connect() as connection:
            ids = list(connection.execute(sa.select(marks.c.run_id)).scalars())
        with self.scene.app.app_context():
            rows = db.session.execute(sa.select(Effect.run_id, Effect.step)).all()
        found = collections.Counter((row[0] or 0, row[1]) for row in rows)
        return found + collections.Counter((run_id, "marks") for run_id in ids)

    def signal(self, worker: Worker, number: signal.Signals) -> None:
        """Send a signal to a worker and its children."""
        os.killpg(worker.pid, number)

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.kill()

    def logs(self) -> str:
        """Give the end of what each worker said."""
        return "\n".join(f"{worker.pid}: {worker.log[-20000:]}" for worker in self.workers)


def _ended(run: SequenceRun) -> Ended:
    history = [(row.step, row.attempt, str(row.status)) for row in run.step_runs]
    errors = [row.error for row in run.step_runs if row.error]
    return Ended(run.id or 0, run.status, dict(run.data), run.error, history, errors)


@contextlib.contextmanager
def open_arena(setting: Setting) -> t.Iterator[Arena]:
    """Make an arena, and leave nothing behind."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-crash-")))
        url, other_url = (_database(stack, setting.database, folder, n) for n in ("app", OTHER))
        create_tables(url)
        other = sa.create_engine(other_url, poolclass=NullPool)
        marks.metadata.create_all(other)
        broker = services.make_broker("embedded" if setting.database == "sqlite" else "redis")
        stack.callback(broker.clear)
        config = {**setting.config, "SQLALCHEMY_BINDS": {OTHER: other_url}}
        scene = Scene.make(create_app, folder, url, broker.config(), more=MORE, **config)
        stack.callback(close_app, scene.app)
        arena = Arena(scene, setting, write_module(folder, scene.source), other_url)
        stack.callback(arena.close)
        yield arena


def _database(stack: contextlib.ExitStack, kind: str, folder: Path, name: str) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder / name}.sqlite"
    server = SERVERS[kind]
    services.require(server)
    url = services.create_database(server)
    stack.callback(services.drop_database, server, url)
    return url
