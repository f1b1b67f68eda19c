"""Sequences for real worker processes, and what the tests of these share."""

from __future__ import annotations

import collections
import os
import textwrap
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from flask_sequence import BaseSequence, SequenceRun, Status, Step
from flask_sequence.rows.models import Worker as WorkerRow
from flask_sequence.runtime import current_runtime
from tests.support.application import Effect, db
from tests.support.waiting import wait_until

if t.TYPE_CHECKING:
    from flask import Flask

FOLDER = "FLASK_SEQUENCE_TEST_FOLDER"
"""The environment variable that names the folder of attempts and gates."""
LEASE_SECONDS = 3.0
SWEEP_SECONDS = 1.0
MAX_CRASHES = 3
SETTINGS: dict[str, t.Any] = {
    "SEQUENCE_IMPORTS": ("tests.support.working",),
    "SEQUENCE_LEASE_SECONDS": LEASE_SECONDS,
    "SEQUENCE_SWEEP_SECONDS": SWEEP_SECONDS,
    "SEQUENCE_MAX_CRASHES": MAX_CRASHES,
    "SEQUENCE_BURST_SECONDS": 1.0,
}
SOURCE = """
import flask_sequence
from tests.support.application import create_app, db

app = create_app({url!r}, {celery!r}, instance_path={instance!r}, **{settings!r})
celery_app = flask_sequence.celery_app(app)
"""


def folder() -> Path:
    return Path(os.environ[FOLDER])


def note_attempt(run_id: int | None, step: str) -> None:
    """Note run, step, process and time of an attempt, in one write."""
    line = f"{run_id} {step} {os.getpid()} {time.monotonic()}\n".encode()
    file = os.open(folder() / "attempts", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, line)
    os.close(file)


class Noted(Step):
    """Notes each attempt in a file before its work, and writes an effect."""

    def perform(self) -> None:
        note_attempt(self.run.id, type(self).__name__)
        self.work()
        db.session.add(Effect(run_id=self.run.id, step=type(self).__name__, note=self.note()))

    def work(self) -> None:
        """What takes time, or life."""

    def note(self) -> str:
        return str(os.getpid())


class First(Noted):
    pass


class Second(Noted):
    pass


class Gate(Noted):
    """Waits until the test opens it."""

    def work(self) -> None:
        wait_until((folder() / "open").exists, 60, interval=0.02)


class Written(Gate):
    """Has written, and not committed, when it waits."""

    def work(self) -> None:
        db.session.add(Effect(run_id=self.run.id, step="Written early", note=self.note()))
        db.session.flush()
        super().work()


class Poison(Noted):
    def work(self) -> None:
        os._exit(7)


class HardLimit(Noted):
    time_limit = 1.0

    def work(self) -> None:
        time.sleep(60)


class SoftLimit(Noted):
    soft_time_limit = 1.0
    max_retries = 0

    def work(self) -> None:
        time.sleep(60)


class Asking(Noted):
    """Tries again until the test opens the gate."""

    max_retries = None

    def work(self) -> None:
        if not (folder() / "open").exists():
            self.retry(countdown=0.2)


class Backend(Noted):
    """Notes which connection it has."""

    def note(self) -> str:
        time.sleep(0.2)
        return f"{os.getpid()} {db.session.scalar(sa.text('select pg_backend_pid()'))}"


class Kept(Noted):
    """Notes whether its process keeps a connection through a burst."""

    def note(self) -> str:
        worker = current_runtime().worker
        return str(worker is not None and worker.kept is not None)


class WorkTwo(BaseSequence):
    steps = (First, Second)


class WorkGated(BaseSequence):
    steps = (First, Gate, Second)


class WorkWritten(BaseSequence):
    steps = (Written, Second)


class WorkPoison(BaseSequence):
    steps = (First, Poison, Second)


class WorkHard(BaseSequence):
    steps = (HardLimit, Second)


class WorkSoft(BaseSequence):
    steps = (SoftLimit, Second)


class WorkAsking(BaseSequence):
    steps = (Asking, Second)


class WorkBackend(BaseSequence):
    steps = (Backend,)


class WorkKept(BaseSequence):
    steps = (Kept,)


@dataclass
class Scene:
    """An application in this process, and what its workers leave behind."""

    app: Flask
    folder: Path
    source: str
    """The module of the workers."""

    @classmethod
    def make(
        cls,
        make_app: t.Callable[..., Flask],
        folder: Path,
        url: str,
        celery: t.Mapping[str, t.Any] | None = None,
        *,
        more: str = "",
        **config: t.Any,
    ) -> t.Self:
        """Make the application, and the source of the workers' module.

        :param make_app: The fixture.
        :param folder: The test's folder.
        :param url: The address of the database.
        :param celery: Celery's settings.
        :param more: More lines of the module.
        :param config: More of ``app.config``.
        """
        settings = {**SETTINGS, **config}
        source = SOURCE.format(
            url=url, celery=celery, instance=str(folder / "instance"), settings=settings
        )
        app = make_app(url, celery, instance_path=folder / "instance", **settings)
        return cls(app, folder, source + textwrap.dedent(more))

    @property
    def env(self) -> dict[str, str]:
        """What the workers need in their environment."""
        return {FOLDER: str(self.folder)}

    def start(self, sequence: type[t.Any], count: int = 1) -> list[int]:
        """Start some runs, and commit."""
        with self.app.app_context():
            runs = [sequence.start() for _ in range(count)]
            db.session.commit()
            return [t.cast(int, run.id) for run in runs]

    def open(self) -> None:
        """Open the gate."""
        (self.folder / "open").touch()

    def attempts(self, step: str | None = None) -> list[tuple[int, int]]:
        """Give run and process of each attempt, at one step or at all."""
        file = self.folder / "attempts"
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [line.split() for line in lines]
        return [(int(row[0]), int(row[2])) for row in rows if step in (None, row[1])]

    def effects(self) -> collections.Counter[tuple[int, str]]:
        """Count the effects of each run and step."""
        with self.app.app_context():
            rows = db.session.execute(sa.select(Effect.run_id, Effect.step)).all()
        return collections.Counter((row[0] or 0, row[1]) for row in rows)

    def notes(self) -> list[str]:
        """Give the notes of the effects."""
        with self.app.app_context():
            return list(db.session.scalars(sa.select(Effect.note)))

    def run(self, run_id: int) -> SequenceRun:
        """Load a run."""
        with self.app.app_context():
            return db.session.get_one(SequenceRun, run_id)

    def statuses(self) -> collections.Counter[Status]:
        """Count the runs in each state."""
        with self.app.app_context():
            return collections.Counter(db.session.scalars(sa.select(SequenceRun.status)))

    def wait(self, run_ids: t.Iterable[int], timeout: float = 20.0) -> list[Status]:
        """Wait for runs, and give where they stand."""
        until = time.monotonic() + timeout
        with self.app.app_context():
            runs = [db.session.get_one(SequenceRun, run_id) for run_id in run_ids]
            db.session.rollback()
            return [run.wait(max(until - time.monotonic(), 0.01)) for run in runs]

    def workers(self) -> list[t.Any]:
        """Give the rows of the workers: id, pid and when each was last counted as alive."""
        with self.app.app_context():
            columns = (WorkerRow.id, WorkerRow.pid, WorkerRow.seen_until)
            return list(db.session.execute(sa.select(*columns)))

    def held(self) -> int:
        """Count the runs that a process holds."""
        with self.app.app_context():
            running = sa.select(SequenceRun.id).where(SequenceRun.status == Status.RUNNING)
            return len(db.session.scalars(running).all())
