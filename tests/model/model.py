"""The model: what may happen to a deployment, and what each of it must lead to."""

from __future__ import annotations

import contextlib
import typing as t

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.errors import BusyError
from flask_sequence.worker.duties import DUTIES
from tests.model.expectations import Expectations, Row
from tests.model.faults import Deed, Failing, How, Point, Stop
from tests.model.ledger import unfinished
from tests.model.rules import boolean, one_of, pick, plan, rule, some, stops
from tests.model.simulation import Simulation
from tests.model.workers import LEASE, SimulatedWorker

AT_BODY = Stop(Point.BODY, 1, How.STAND)


class Model(Expectations):
    """What happens to a deployment; after each of it the books must be in order.

    :param world: The deployment.
    :param burst: Whether the first of its two workers does a run in one burst; else the other one.
    """

    def __init__(self, world: Simulation, *, burst: bool) -> None:
        super().__init__(world)
        self._checked: tuple[int, int] | None = None
        world.clear()
        world.worker(burst=burst)
        world.worker(burst=not burst)
        world.start()

    def check(self) -> None:
        """See that the books are in order, unless nothing was committed since the last time."""
        version = (self.world.database.version, len(self.world.early))
        if version == self._checked:
            return
        self._checked = version
        problems = self.world.problems()
        assert problems == [], "; ".join(problems)

    def end(self) -> None:
        """Heal, and see that nothing is lost."""
        self.world.database.strangers.go()
        for worker in self.alive:
            self.take_back(worker)
        self.world.heal()
        self.check()
        if failed := self.in_state(Status.FAILED):
            for row in failed:
                self.world.retry(row["id"])
            self.world.heal()
            self.check()
        left = unfinished(self.world.books())
        assert left == [], "; ".join(left)

    def take_back(self, worker: SimulatedWorker) -> None:
        """See that a worker that lives takes back by itself what its processes have left."""
        ended = {process.pid for process in worker.processes if process.has_ended}
        if not any(row["pid"] in ended for row in self.world.database.rows()):
            return
        worker.failing.clear()
        worker.sweep()
        worker.sweep()
        held = [row["id"] for row in self.world.database.rows() if row["pid"] in ended]
        assert held == [], f"runs {held} are left with processes that do not work on them"

    def picked(self, pick: int, of: t.Sequence[t.Any]) -> t.Any:
        """Pick something; 0 is the newest."""
        return of[-1 - pick % len(of)]

    # The web

    @contextlib.contextmanager
    def asked(self) -> t.Iterator[None]:
        """Ask something of the database, which may be locked: then nothing must have changed."""
        if not self.is_locked:
            yield
            return
        before = self.world.database.rows()
        with contextlib.suppress(sa.exc.OperationalError, BusyError):
            yield
            return
        assert self.world.database.rows() == before

    @rule(3, commit=boolean, savepoint=boolean)
    def start(self, commit: bool, savepoint: bool) -> None:
        """Start a run."""
        before = len(self.world.database.rows())
        with self.asked():
            self.world.start(commit=commit, savepoint=savepoint)
            assert len(self.world.database.rows()) == before + (commit and savepoint)

    @rule(1, lost=one_of(How.UNSENT, How.UNANSWERED), when=lambda model: not model.is_locked)
    def start_without_answer(self, lost: How) -> None:
        """Start a run, and do not get to know whether it is started."""
        before = len(self.world.database.rows())
        with contextlib.suppress(sa.exc.OperationalError):
            self.world.start(lost=lost)
        assert len(self.world.database.rows()) == before + (lost is How.UNANSWERED)

    @rule(1, key=one_of("a", "b"), commit=boolean)
    def start_with_key(self, key: str, commit: bool) -> None:
        """Start a run unless one is active."""
        rows = self.world.database.rows()
        active = [row["id"] for row in rows if row["active_key"] == key]
        with self.asked():
            run_id = self.world.start(key=key, commit=commit)
            if active:
                assert [run_id] == active
            assert len(self.world.database.rows()) == len(rows) + (commit and not active)

    @rule(1, which=pick, commit=boolean, when=lambda model: model.in_state(Status.FAILED))
    def retry(self, which: int, commit: bool) -> None:
        """Retry a run that has failed."""
        row = self.picked(which, self.in_state(Status.FAILED))
        with self.asked():
            self.world.retry(row["id"], commit=commit)
            after = self.row(row["id"])
            told = (after["status"], after["step"], after["retries"], after["crashes"])
            if commit:
                assert told == (Status.WAITING, row["step"], 0, 0)
            else:
                assert after == row

    @rule(1, which=pick, commit=boolean)
    def cancel(self, which: int, commit: bool) -> None:
        """Cancel a run that has not ended."""
        row = self.picked(which, self.world.database.rows())
        if row["status"].final:
            return
        with self.asked():
            self.world.cancel(row["id"], commit=commit)
            assert self.row(row["id"])["status"] is (Status.CANCELLED if commit else row["status"])

    # The brokers, and the workers' children

    @rule(3, which=pick, plan=plan, times=one_of(1, 2, 3), when=lambda model: model.can_deliver)
    def deliver(self, which: int, plan: list[Deed], times: int) -> None:
        """The newest nudge, and what follows from it."""
        for number in range(times):
            worker = self.picked(which + number, self.alive)
            self.take(worker, self.world.nudges[-1], plan[number:], [])

    @rule(6, which=pick, plan=plan, stops=stops, when=lambda model: model.can_deliver)
    def deliver_and_stop(self, which: int, plan: list[Deed], stops: list[Stop]) -> None:
        """The newest nudge, to a process that does not come far."""
        self.take(self.picked(which, self.alive), self.world.nudges[-1], plan, stops)

    @rule(
        3,
        which=pick,
        nudge=pick,
        plan=plan,
        stops=lambda by: by.choice(([], stops(by))),
        when=lambda model: model.can_deliver,
    )
    def deliver_any(self, which: int, nudge: int, plan: list[Deed], stops: list[Stop]) -> None:
        """A nudge that came before, or too early, or is stale."""
        found = self.picked(nudge, self.world.nudges)
        self.take(self.picked(which, self.alive), found, plan, stops)

    @rule(3, which=pick, when=lambda model: model.standing)
    def go_on(self, which: int) -> None:
        """A process goes on that stood still, perhaps for long."""
        process = self.picked(which, self.standing)
        before = self.row(process.nudge.run_id)
        marks = self.world.books().marks(before["id"])
        held = before["pid"] == process.pid
        # It may have stood still before its claim; else it performs in vain, as it does not know.
        is_free = (before["status"], before["version"]) == (Status.WAITING, process.nudge.version)
        process.go()
        if held or (is_free and process.performed):
            self.check_held(process, before)
        else:
            assert self.row(before["id"]) == before, "who does not hold a run has changed it"
            assert self.world.books().marks(before["id"]) == marks

    @rule(1, which=pick, when=lambda model: model.standing)
    def kill_child(self, which: int) -> None:
        """A process dies that stood still."""
        before = self.world.database.rows()
        self.picked(which, self.standing).die()
        assert self.world.database.rows() == before

    def take(
        self, worker: SimulatedWorker, nudge: t.Any, plan: list[Deed], stops: list[Stop]
    ) -> None:
        """Let a worker take a nudge."""
        before = self.row(nudge.run_id)
        self.check_taken(self.world.deliver(worker, nudge, plan, stops), before)

    # The keepers, and time

    @rule(2, which=pick, when=lambda model: model.alive)
    def look(self, which: int) -> None:
        """A keeper looks after its children."""
        worker = self.picked(which, self.alive)
        before = self.world.database.rows()
        worker.look()
        self.check_freed(before, worker, swept=False)

    @rule(3, which=pick, when=lambda model: model.alive)
    def sweep(self, which: int) -> None:
        """A keeper does all its duties."""
        worker = self.picked(which, self.alive)
        before, known = self.world.database.rows(), len(self.world.nudges)
        worker.sweep()
        self.check_freed(before, worker, swept=True)
        self.check_unknown(before, worker)
        self.check_published(before, worker, known)
        self.note_left(before, worker)

    def note_left(self, before: list[Row], worker: SimulatedWorker) -> None:
        """Note what the sweep of a worker must have seen in the hands of nobody."""
        ended = {process.pid for process in worker.processes if process.has_ended}
        worker.suspected = {
            (row["id"], row["version"])
            for row in before
            if row["pid"] in ended and row["worker_id"] == worker.name
        }

    @rule(1, which=pick, when=lambda model: model.alive)
    def lapse(self, which: int) -> None:
        """All are silent for longer than the lease, and one sweeps then."""
        self.world.database.now += LEASE + 1
        self.sweep(which)

    @rule(2, which=pick, by=pick, when=lambda model: model.standing and model.can_deliver)
    def overtake(self, which: int, by: int) -> None:
        """Another process takes what one held that stands still, and stands still as well."""
        run_id = self.picked(which, self.standing).nudge.run_id
        self.lapse(by)
        now = (run_id, self.row(run_id)["version"])
        for nudge in [each for each in self.world.nudges if (each.run_id, each.version) == now]:
            self.take(self.picked(by, self.alive), nudge, [], [AT_BODY])

    @rule(1, which=pick, burst=boolean, when=lambda model: model.alive)
    def kill_worker(self, which: int, burst: bool) -> None:
        """A worker dies, and another one is started."""
        self.picked(which, self.alive).die()
        self.world.worker(burst=burst)

    @rule(1, which=pick, burst=boolean, when=lambda model: model.alive)
    def shut_down(self, which: int, burst: bool) -> None:
        """A worker is shut down, and another one is started."""
        worker = self.picked(which, self.alive)
        worker.shut_down()
        held = [row["worker_id"] == worker.name for row in self.world.database.rows()]
        assert self.is_locked or not any(held)
        self.world.worker(burst=burst)

    @rule(2, seconds=one_of(1.0, 8.0, 8.0, LEASE / 2, LEASE + 1, 2 * LEASE))
    def pass_time(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.world.database.now += seconds

    @rule(1)
    def rename(self) -> None:
        """The step in the middle gets its other name."""
        self.world.know(renamed=not self.world.is_renamed)

    # What goes wrong

    @rule(
        2,
        which=pick,
        duties=some(one_of(*[duty.name for duty in DUTIES]), 1, 2, 4),
        how=one_of(*Failing),
        when=lambda model: model.alive,
    )
    def fail_duties(self, which: int, duties: list[str], how: Failing) -> None:
        """Duties of a keeper begin to fail."""
        self.picked(which, self.alive).failing |= dict.fromkeys(duties, how)

    @rule(1, which=pick, when=lambda model: any(each.failing for each in model.alive))
    def mend_duties(self, which: int) -> None:
        """The duties of a keeper no longer fail."""
        failing = [each for each in self.alive if each.failing]
        self.picked(which, failing).failing.clear()

    @rule(1, writes=boolean, pauses=one_of(1, 10, 1000), when=lambda model: not model.is_locked)
    def lock(self, writes: bool, pauses: int) -> None:
        """A stranger locks the database."""
        self.world.database.strangers.come(pauses, writes=writes)

    @rule(4, when=lambda model: model.is_locked)
    def unlock(self) -> None:
        """A stranger goes."""
        self.world.database.strangers.go()

    @rule(1, when=lambda model: not model.world.brokers.is_failing)
    def lose_broker(self) -> None:
        """The broker fails, and no other one is there yet."""
        self.world.brokers.is_failing = True

    @rule(1)
    def go_over(self) -> None:
        """The other broker is used from here on."""
        self.world.brokers.go_over()
