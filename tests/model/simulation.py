"""A whole deployment in one process: web, brokers, workers, their keepers, and the clock.

The store, the runner, the sweep and what listens to sessions are the real ones. The clock of the
database goes only when a test lets it, and nothing waits for anything.
"""

from __future__ import annotations

import contextlib
import itertools
import typing as t
from types import SimpleNamespace

from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from flask_sequence.engine import attempt, claiming, failing, in_hand, patience
from flask_sequence.rows import claims, own_connections
from flask_sequence.runtime import Nudge, Runtime, runtime_of
from flask_sequence.worker import keeper, post
from flask_sequence.worker.duties import batches, publishing, recovery, unknown
from tests.model.brokers import Brokers
from tests.model.database import Database
from tests.model.faults import Behaviour, Deed, How, Stop
from tests.model.ledger import Books, Moved, problems
from tests.model.processes import Process, pid
from tests.model.steps import LAST, SimulatedChild, SimulatedRun, StepOne, StepOneRenamed, define
from tests.model.workers import LEASE, SimulatedWorker
from tests.support.application import close_app, create_app, db

if t.TYPE_CHECKING:
    from pathlib import Path

    import pytest

SWEEP = 5.0
MAX_CRASHES = 3


class Simulation:
    """An application on a SQLite file, and what works on it.

    :param folder: Where the file and the instance folder lie.
    :param path: The path of the file, with all tables.
    :param monkeypatch: Puts the clock and the processes in their places.
    """

    def __init__(self, folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"poolclass": NullPool, "connect_args": {"timeout": 0}}
        self.app = create_app(
            f"sqlite:///{path}",
            instance_path=folder / "instance",
            SQLALCHEMY_ENGINE_OPTIONS=options,
            SEQUENCE_LEASE_SECONDS=LEASE,
            SEQUENCE_SWEEP_SECONDS=SWEEP,
            SEQUENCE_MAX_CRASHES=MAX_CRASHES,
            SEQUENCE_RETENTION=None,
        )
        self.brokers: Brokers = Brokers(self._see_published)
        self.runtime: Runtime = runtime_of(self.app)
        self.runtime.publisher = self.brokers
        self.database: Database = Database(path)
        with self.app.app_context():
            self.engine = db.engine
        self.database.watch(self.engine, monkeypatch)
        self._put_in_place(monkeypatch)
        self.clear()

    def _put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (claiming, claims, in_hand):
            monkeypatch.setattr(module, "os", SimpleNamespace(getpid=pid))
        monkeypatch.setattr(recovery, "live_processes", lambda worker: worker.living())
        timed = (attempt, keeper, post, batches, publishing, recovery, unknown, own_connections)
        for module in timed:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.ticks))
        monkeypatch.setattr(keeper, "KEEP_SECONDS", 1e9)  # to connect takes longer than all else
        for module in (claiming, failing, patience):
            monkeypatch.setattr(
                module, "pause", lambda tries: self.database.strangers.let_time_pass()
            )

    def clear(self) -> None:
        """Begin anew, with an empty database and no worker."""
        for worker in getattr(self, "workers", ()):
            worker.disconnect()
        self.ticks = 0.0
        """By which processes measure how long something takes."""
        self.numbers: t.Iterator[int] = itertools.count(1)
        self.workers: list[SimulatedWorker] = []
        self.tokens: set[str] = set()
        self.unsure: set[str] = set()
        self.deaths: set[int] = set()
        self._judged = 0
        self.early: list[str] = []
        self.know(renamed=False)
        self.brokers.clear()
        self.database.clear()

    def close(self) -> None:
        """Let all processes and connections go."""
        self.bury()
        for worker in self.workers:
            worker.disconnect()
        self.database.close()
        close_app(self.app)

    def bury(self) -> None:
        """End all processes that stand still or are dead."""
        for process in self.processes:
            process.bury()

    # The web

    @contextlib.contextmanager
    def request(self, *, commit: bool = True) -> t.Iterator[None]:
        """Be in a request, which ends with a commit or a rollback."""
        with self.app.app_context():
            yield
            if commit:
                db.session.commit()
            else:
                db.session.rollback()

    def start(
        self,
        *,
        key: str | None = None,
        commit: bool = True,
        savepoint: bool = True,
        lost: How | None = None,
    ) -> int:
        """Start a run, and give its id; with a key, that of the active one, if there is one.

        :param key: The key.
        :param commit: Whether the request commits.
        :param savepoint: Whether its savepoint is kept.
        :param lost: What happens to the commit.
        """
        token = f"token-{next(self.numbers)}"
        self.unsure |= {token} if lost else set()
        with self.database.losing(lost), self.request(commit=commit):
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

    @property
    def nudges(self) -> list[Nudge]:
        """What the broker hands out."""
        return self.brokers.nudges

    def worker(self, *, burst: bool = False) -> SimulatedWorker:
        """Start a worker.

        :param burst: Whether a process goes on with the next step itself.
        """
        self.workers.append(SimulatedWorker(self, 1e6 if burst else 0.0))
        return self.workers[-1]

    def _see_published(self, nudges: t.Sequence[Nudge]) -> None:
        # It must be committed by then, for all to see.
        for nudge in nudges:
            if self.database.row(nudge.run_id) is None:
                self.early.append(f"early: published before its commit (run {nudge.run_id})")

    def deliver(
        self,
        worker: SimulatedWorker,
        nudge: Nudge | int = -1,
        plan: t.Sequence[Deed] = (),
        stops: t.Sequence[Stop] = (),
    ) -> Process:
        """Let a child of a worker take a nudge, until it ends or is stopped.

        :param worker: The worker.
        :param nudge: The nudge, or its number among all that were published.
        :param plan: What the steps do that it performs.
        :param stops: Where the child is stopped.
        """
        if isinstance(nudge, int):
            nudge = self.nudges[nudge]
        number, strangers = len(worker.processes), self.database.strangers
        process = Process(worker.runtime, number, nudge, plan, stops, strangers=strangers)
        worker.processes.append(process)
        process.go()
        return process

    def deliver_all(self, worker: SimulatedWorker) -> None:
        """Deliver all that is published from now on, and what follows from it."""
        while self.nudges:
            nudge = self.nudges.pop(0)
            self.database.now += nudge.countdown
            self.deliver(worker, nudge)

    def judge_crashes(self) -> None:
        """Keep which of the crashes that are in the history by now really happened."""
        crashed = "SELECT id, worker FROM sequence_step_runs WHERE status = 'crashed' AND id > ?"
        found = self.database.read(crashed, self._judged)
        if not found:
            return
        dead = {
            str(process.pid)  # which no two processes have
            for worker in self.workers
            for process in worker.processes
            if process.has_died or process.error is not None or worker.is_silent
        }
        for row in found:
            self._judged = row["id"]
            if row["worker"].rpartition(":")[2] in dead:
                self.deaths.add(row["id"])

    def lapse(self, worker: SimulatedWorker) -> None:
        """Let all workers be silent for longer than the lease, and one sweep then."""
        self.database.now += LEASE + 1.0
        worker.look()
        worker.sweep()

    def heal(self) -> None:
        """End all that disturbs, and let a worker and its keeper bring everything to its end."""
        self.database.strangers.go()
        self.brokers.is_failing = False
        worker = self.worker(burst=True)
        for renamed in (True, False):
            self.know(renamed=renamed)
            self.nudges.clear()
            self.work(worker)

    def work(self, worker: SimulatedWorker) -> None:
        """Let a worker and its keeper do what there is to do, and the time pass that it takes."""
        left = (Status.WAITING, Status.RUNNING, Status.BLOCKED)
        for _ in range(40):
            if not any(row["status"] in left for row in self.database.rows()):
                return
            worker.sweep()
            self.deliver_all(worker)
            active = left[:2]
            if not any(row["status"] in active for row in self.database.rows()):
                return
            self.database.now += LEASE + 10.0

    # Looking

    @property
    def processes(self) -> list[Process]:
        """All processes that ever were."""
        return [process for worker in self.workers for process in worker.processes]

    def problems(self) -> list[str]:
        """Tell what must not be."""
        return self.early + problems(self.books())

    def books(self) -> Books:
        """Read the books."""
        read = self.database.read
        performed = [entry for process in self.processes for entry in process.performed]
        failures: dict[int, int] = dict.fromkeys((entry.run_id for entry in performed), 0)
        for entry in performed:
            failures[entry.run_id] += entry.has_failed
        effects = read("SELECT run_id, step, note FROM effects ORDER BY id")
        moves = read("SELECT run_id, source, target, was, now FROM journal ORDER BY id")
        return Books(
            runs=self.database.rows(),
            effects=[(row["run_id"], row["step"], row["note"]) for row in effects],
            history=read("SELECT * FROM sequence_step_runs ORDER BY id"),
            moves=[Moved(run, Status(one), Status(two), *rest) for run, one, two, *rest in moves],
            tokens=self.tokens,
            unsure=self.unsure,
            failures=failures,
            finishers={each.run_id for each in performed if each.deed[0] is Behaviour.FINISH},
            deaths=self.deaths,
            positions={"StepZero": 0, "StepOne": 1, "StepOneRenamed": 1, "StepTwo": 2},
            last={SimulatedRun.__name__: LAST, SimulatedChild.__name__: 0},
        )
