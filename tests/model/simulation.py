"""A whole deployment in one process: web, broker, workers, their keepers, and the clock.

The store, the runner, the sweep and what listens to sessions are the real ones. The clock of the
database goes only when a test lets it, and nothing waits for anything.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import sqlite3
import typing as t
from types import SimpleNamespace

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from flask_sequence.definition.data import decode_text
from flask_sequence.engine import claiming, patience, runner
from flask_sequence.rows import claims
from flask_sequence.runtime import Nudge, Runtime, runtime_of
from flask_sequence.worker.duties import recovery
from tests.model.ledger import Books, Moved, problems
from tests.model.processes import (
    Behaviour,
    Point,
    Process,
    Stop,
    checked_in,
    checked_out,
    current_process,
    pid,
)
from tests.model.steps import (
    FAILURES,
    LAST,
    SimulatedChild,
    SimulatedRun,
    StepOne,
    StepOneRenamed,
    define,
)
from tests.model.workers import LEASE, Broker, SimulatedWorker
from tests.support.application import close_app, create_app, db

if t.TYPE_CHECKING:
    from pathlib import Path

    import pytest

SWEEP = 5.0
MAX_CRASHES = 3
BEGINNING = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
JOURNAL = """
CREATE TABLE journal (id INTEGER PRIMARY KEY, run_id INT, source, target, was INT, now INT);
CREATE TRIGGER move AFTER UPDATE OF status, step, version ON sequence_runs BEGIN
    INSERT INTO journal VALUES (NULL, old.id, old.status, new.status, old.version, new.version);
END;
"""
TABLES = (
    *("sequence_step_runs", "effects", "sequence_runs", "sequence_workers", "journal"),
    "sqlite_sequence",
)


class Simulation:
    """An application on a SQLite file, and what works on it.

    :param folder: Where the file and the instance folder lie.
    :param database: The path of the file, with all tables.
    :param monkeypatch: Puts the clock and the processes in their places.
    """

    def __init__(self, folder: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"poolclass": NullPool, "connect_args": {"timeout": 0}}
        self.app = create_app(
            f"sqlite:///{database}",
            instance_path=folder / "instance",
            SQLALCHEMY_ENGINE_OPTIONS=options,
            SEQUENCE_LEASE_SECONDS=LEASE,
            SEQUENCE_SWEEP_SECONDS=SWEEP,
            SEQUENCE_MAX_CRASHES=MAX_CRASHES,
            SEQUENCE_RETENTION=None,
        )
        self.runtime: Runtime = runtime_of(self.app)
        self.runtime.publisher = Broker(self)
        self.reader = sqlite3.connect(database, isolation_level=None)
        self.reader.row_factory = sqlite3.Row
        self.reader.executescript(JOURNAL)
        with self.app.app_context():
            self.engine = db.engine
        self.watch(self.engine)
        self._attach_processes(monkeypatch)
        self.clear()

    def _attach_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sa.event.listen(self.engine, "checkout", checked_out)
        sa.event.listen(self.engine, "checkin", checked_in)
        commit = self.engine.dialect.do_commit

        def do_commit(connection: t.Any) -> None:
            process = current_process()
            if process is None:
                commit(connection)
                return
            process.at(Point.COMMIT)
            commit(connection)
            process.at(Point.COMMITTED)

        monkeypatch.setattr(self.engine.dialect, "do_commit", do_commit)
        for module in (claiming, claims):
            monkeypatch.setattr(module, "os", SimpleNamespace(getpid=pid))
        monkeypatch.setattr(recovery, "live_processes", lambda worker: worker.living())
        # Each look after the processes comes long after the one before.
        late = SimpleNamespace(monotonic=itertools.count(1.0, 3600.0).__next__)
        monkeypatch.setattr(recovery, "time", late)
        for module in (claiming, patience, runner):
            monkeypatch.setattr(module, "pause", lambda tries: None)

    def clear(self) -> None:
        """Begin anew, with an empty database and no worker."""
        self.now = 0.0
        self.numbers: t.Iterator[int] = itertools.count(1)
        self.nudges: list[Nudge] = []
        self.workers: list[SimulatedWorker] = []
        self.tokens: set[str] = set()
        self.deaths: set[int] = set()
        self._judged = 0
        self.early: list[str] = []
        self.know(renamed=False)
        for table in TABLES:
            self.reader.execute(f"DELETE FROM {table}")

    def close(self) -> None:
        """Let all processes and connections go."""
        self.bury()
        self.reader.close()
        close_app(self.app)

    def bury(self) -> None:
        """End all processes that stand still or are dead."""
        for process in self.processes:
            process.bury()

    def watch(self, engine: sa.Engine) -> None:
        """Let the connections of an engine go by the clock of the test."""

        @sa.event.listens_for(engine, "connect")
        def connected(connection: sqlite3.Connection, record: object) -> None:
            for arguments in (2, 3):
                connection.create_function("strftime", arguments, self._strftime)
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    def _strftime(self, form: str, moment: str, shift: str = "0") -> str:
        return self._time(float(shift.split()[0]))

    def _time(self, later: float = 0.0) -> str:
        at = BEGINNING + datetime.timedelta(seconds=self.now + later)
        return f"{at:%Y-%m-%d %H:%M:%S.%f}"

    @property
    def clock(self) -> str:
        """The time by the database's clock, as it stands in rows."""
        return self._time()

    # Starting

    @contextlib.contextmanager
    def request(self, *, commit: bool = True) -> t.Iterator[None]:
        """Be in a request, which ends with a commit or a rollback."""
        with self.app.app_context():
            yield
            if commit:
                db.session.commit()
            else:
                db.session.rollback()

    def start(self, *, key: str | None = None, commit: bool = True, savepoint: bool = True) -> int:
        """Start a run, and give its id; with a key, that of the active one, if there is one.

        :param key: The key.
        :param commit: Whether the request commits.
        :param savepoint: Whether its savepoint is kept.
        """
        token = f"token-{next(self.numbers)}"
        with self.request(commit=commit):
            nested = db.session.begin_nested()
            run = self.sequence.set(key=key).start(token=token, done=[])
            db.session.flush()
            run_id, is_new = run.id, run.data["token"] == token
            if savepoint:
                nested.commit()
            else:
                nested.rollback()
        if commit and savepoint and is_new:
            self.tokens.add(token)
        return run_id

    def retry(self, run_id: int, *, commit: bool = True) -> None:
        """Retry a failed run."""
        with self.request(commit=commit):
            db.session.get_one(SequenceRun, run_id).retry()

    def cancel(self, run_id: int, *, commit: bool = True) -> None:
        """Cancel a run that is not finished."""
        with self.request(commit=commit):
            db.session.get_one(SequenceRun, run_id).cancel()

    def know(self, *, renamed: bool) -> None:
        """Let all know the step in the middle by its new name, or by the old one."""
        self.is_renamed = renamed
        self.sequence: type[SimulatedRun] = define(StepOneRenamed if renamed else StepOne)

    # Working

    def worker(self, *, burst: bool = False) -> SimulatedWorker:
        """Start a worker.

        :param burst: Whether a process goes on with the next step itself.
        """
        self.workers.append(SimulatedWorker(self, 1e6 if burst else 0.0))
        return self.workers[-1]

    def sent(self, nudges: t.Sequence[Nudge]) -> None:
        """Take what is published; it must be committed by then, for all to see."""
        for nudge in nudges:
            if self.row(nudge.run_id) is None:
                self.early.append(f"early: published before its commit (run {nudge.run_id})")
        self.nudges += nudges

    def deliver(
        self,
        worker: SimulatedWorker,
        nudge: Nudge | int = -1,
        plan: t.Sequence[Behaviour] = (),
        stop: Stop | None = None,
    ) -> Process:
        """Let a child of a worker take a nudge, until it ends or is stopped.

        :param worker: The worker.
        :param nudge: The nudge, or its number among all that were published.
        :param plan: What the steps do that it performs.
        :param stop: Where the child is stopped.
        """
        if isinstance(nudge, int):
            nudge = self.nudges[nudge]
        process = Process(worker.runtime, nudge, plan, stop)
        worker.processes.append(process)
        process.go()
        return process

    def deliver_all(self, worker: SimulatedWorker) -> None:
        """Deliver all that is published from now on, and what follows from it."""
        while self.nudges:
            self.deliver(worker, self.nudges.pop(0))

    def judge_crashes(self) -> None:
        """Keep which of the crashes that are in the history by now really happened."""
        dead = {
            f"{worker.name}:{process.pid}"
            for worker in self.workers
            for process in worker.processes
            if process.has_died or worker.is_silent
        }
        crashed = "SELECT id, worker FROM sequence_step_runs WHERE status = 'crashed' AND id > ?"
        for row in self.reader.execute(crashed, [self._judged]).fetchall():
            self._judged = row["id"]
            if row["worker"] in dead:
                self.deaths.add(row["id"])

    def lapse(self, worker: SimulatedWorker) -> None:
        """Let all workers be silent for longer than the lease, and one sweep then."""
        self.now += LEASE + 1.0
        worker.look()
        worker.sweep()

    def heal(self) -> None:
        """End all that disturbs, and let a worker and its keeper bring everything to its end."""
        worker = self.worker(burst=True)
        for renamed in (True, False):
            self.know(renamed=renamed)
            self.nudges.clear()
            self.work(worker)

    def work(self, worker: SimulatedWorker) -> None:
        """Let a worker and its keeper do what there is to do, and the time pass that it takes."""
        for _ in range(40):
            worker.look()
            worker.sweep()
            self.deliver_all(worker)
            if not any(row["status"] in (Status.WAITING, Status.RUNNING) for row in self.rows()):
                return
            self.now += LEASE + 10.0

    # Looking

    @property
    def processes(self) -> list[Process]:
        """All processes that ever were."""
        return [process for worker in self.workers for process in worker.processes]

    def row(self, run_id: int) -> dict[str, t.Any] | None:
        """Read what is committed of a run."""
        return next(iter(self.rows(" WHERE id = ?", run_id)), None)

    def rows(self, where: str = "", *values: t.Any) -> list[dict[str, t.Any]]:
        """Read what is committed of all runs."""
        found = self.reader.execute(f"SELECT * FROM sequence_runs{where} ORDER BY id", values)
        return [
            {**row, "status": Status(row["status"]), "data": decode_text(row["data"])}
            for row in map(dict, found.fetchall())
        ]

    def problems(self) -> list[str]:
        """Tell what must not be."""
        return self.early + problems(self.books())

    def books(self) -> Books:
        """Read the books."""
        read = self.reader.execute
        performed = [entry for process in self.processes for entry in process.performed]
        failures: dict[int, int] = dict.fromkeys((entry[0] for entry in performed), 0)
        for run_id, _, behaviour in performed:
            failures[run_id] += behaviour in FAILURES
        effects = read("SELECT run_id, step, note FROM effects ORDER BY id").fetchall()
        moves = read("SELECT run_id, source, target, was, now FROM journal ORDER BY id").fetchall()
        return Books(
            runs=self.rows(),
            effects=[(row["run_id"], row["step"], row["note"]) for row in effects],
            history=read("SELECT * FROM sequence_step_runs ORDER BY id").fetchall(),
            moves=[Moved(run, Status(one), Status(two), *rest) for run, one, two, *rest in moves],
            tokens=self.tokens,
            failures=failures,
            finishers={entry[0] for entry in performed if entry[2] is Behaviour.FINISH},
            deaths=self.deaths,
            positions={"StepZero": 0, "StepOne": 1, "StepOneRenamed": 1, "StepTwo": 2},
            last={SimulatedRun.__name__: LAST, SimulatedChild.__name__: 0},
        )
