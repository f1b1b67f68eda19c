"""The model check: whatever happens, in whatever order, and what must hold after each of it.

``MODEL_EXAMPLES=1000 bin/test tests/model/test_model.py`` looks longer, and at other orders each
time.
"""

from __future__ import annotations

import logging
import os
import typing as t

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flask_sequence import Status
from tests.model.ledger import unfinished
from tests.model.processes import STOPS, Behaviour, How, Point, Process, Stop
from tests.model.simulation import MAX_CRASHES, Simulation
from tests.model.steps import FAILURES, LAST
from tests.model.workers import LEASE, SimulatedWorker

if t.TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "60"))
ACTIONS = 40
SEARCHES = "MODEL_EXAMPLES" in os.environ
"""Else the same examples are tried each time."""

picks = st.integers(0, 1000)
plans = st.lists(st.sampled_from(Behaviour), max_size=4)
stops = st.builds(
    lambda where, number: Stop(where[0], number, where[1]),
    st.sampled_from(STOPS),
    st.integers(1, 4),
)
_here: list[Simulation] = []
"""Where the machine works; one for all examples, since it takes long to make."""


@pytest.fixture
def simulation(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> t.Iterator[Simulation]:
    logging.disable(logging.CRITICAL)
    made = Simulation(tmp_path, sqlite_url.removeprefix("sqlite:///"), monkeypatch)
    yield made
    made.close()
    logging.disable(logging.NOTSET)


class Model(RuleBasedStateMachine):
    """What happens to a deployment, and what each of it must lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.world = _here[-1]
        self.world.clear()
        self.moves_seen = 0

    def teardown(self) -> None:
        """Heal, and see that nothing is lost."""
        try:
            self.world.heal()
            self.holds()
            failed = [row["id"] for row in self.world.rows() if row["status"] is Status.FAILED]
            for run_id in failed:
                self.world.retry(run_id)
            self.world.heal()
            self.holds()
            assert unfinished(self.world.books()) == []
        finally:
            self.world.bury()

    @invariant()
    def holds(self) -> None:
        """The books are in order."""
        assert self.world.problems() == []

    def one_of(self, pick: int, of: t.Sequence[t.Any]) -> t.Any:
        """Pick something; 0 is the newest."""
        return of[-1 - pick % len(of)]

    # The web

    @initialize(burst=st.booleans())
    def workers(self, burst: bool) -> None:
        self.world.worker(burst=burst)
        self.world.worker(burst=not burst)
        self.world.start()

    @rule(commit=st.booleans(), savepoint=st.booleans())
    def start(self, commit: bool, savepoint: bool) -> None:
        before = len(self.world.rows())
        self.world.start(commit=commit, savepoint=savepoint)
        assert len(self.world.rows()) == before + (commit and savepoint)

    @rule(key=st.sampled_from(["a", "b"]), commit=st.booleans())
    def start_with_key(self, key: str, commit: bool) -> None:
        rows = self.world.rows()
        active = [row["id"] for row in rows if row["active_key"] == key]
        run_id = self.world.start(key=key, commit=commit)
        if active:
            assert [run_id] == active
        assert len(self.world.rows()) == len(rows) + (commit and not active)

    @rule(pick=picks, commit=st.booleans())
    @precondition(lambda self: self.in_state(Status.FAILED))
    def retry(self, pick: int, commit: bool) -> None:
        row = self.one_of(pick, self.in_state(Status.FAILED))
        self.world.retry(row["id"], commit=commit)
        after = self.row(row["id"])
        told = (after["status"], after["step"], after["retries"], after["crashes"])
        if commit:
            assert told == (Status.WAITING, row["step"], 0, 0)
        else:
            assert after == row

    @rule(pick=picks, commit=st.booleans())
    @precondition(lambda self: self.world.rows())
    def cancel(self, pick: int, commit: bool) -> None:
        row = self.one_of(pick, self.world.rows())
        if row["status"].final:
            return
        self.world.cancel(row["id"], commit=commit)
        assert self.row(row["id"])["status"] is (Status.CANCELLED if commit else row["status"])

    # The broker, and the workers' children

    @rule(which=picks, plan=plans, times=st.integers(1, 3))
    @precondition(lambda self: self.world.nudges and self.alive)
    def deliver(self, which: int, plan: list[Behaviour], times: int) -> None:
        """The newest nudge, and what follows from it."""
        for number in range(times):
            worker = self.one_of(which + number, self.alive)
            self.take(worker, self.world.nudges[-1], plan[number:], None)

    @rule(which=picks, plan=plans, stop=stops)
    @precondition(lambda self: self.world.nudges and self.alive)
    def deliver_and_stop(self, which: int, plan: list[Behaviour], stop: Stop) -> None:
        self.take(self.one_of(which, self.alive), self.world.nudges[-1], plan, stop)

    @rule(which=picks, pick=picks, plan=plans, stop=st.none() | stops)
    @precondition(lambda self: self.world.nudges and self.alive)
    def deliver_any(self, which: int, pick: int, plan: list[Behaviour], stop: Stop | None) -> None:
        """One that came before, or too early, or is stale."""
        nudge = self.one_of(pick, self.world.nudges)
        self.take(self.one_of(which, self.alive), nudge, plan, stop)

    @rule(pick=picks)
    @precondition(lambda self: self.standing)
    def go_on(self, pick: int) -> None:
        """A process goes on that stood still, perhaps for long."""
        process = self.one_of(pick, self.standing)
        before = self.row(process.nudge.run_id)
        marks = self.world.books().marks(before["id"])
        held = before["pid"] == process.pid
        process.go()
        if held:
            self.check_held(process, before)
        else:
            assert self.row(before["id"]) == before
            assert self.world.books().marks(before["id"]) == marks

    @rule(pick=picks)
    @precondition(lambda self: self.standing)
    def kill_child(self, pick: int) -> None:
        before = self.world.rows()
        self.one_of(pick, self.standing).die()
        assert self.world.rows() == before

    def take(
        self, worker: SimulatedWorker, nudge: t.Any, plan: list[Behaviour], stop: Stop | None
    ) -> None:
        before = self.row(nudge.run_id)
        due = before["due_at"] is not None and before["due_at"] <= self.world.clock
        fresh = before["status"] is Status.WAITING and before["version"] == nudge.version
        process = self.world.deliver(worker, nudge, plan, stop)
        if fresh and due and self.knows(before):
            self.check_held(process, before)
        else:
            assert process.performed == []
            assert self.row(before["id"]) == before

    def check_held(self, process: Process, before: dict[str, t.Any]) -> None:
        """See what a process has made of the run that it held, or was to take."""
        row = self.row(before["id"])
        if process.has_died or not process.performed:
            assert process.has_ended is False
            return
        _, position, behaviour = process.performed[-1]
        if process.stands_for is Point.BODY:
            assert (row["status"], row["pid"]) == (Status.RUNNING, process.pid)
            assert self.position(row) == position
        if process.has_ended:
            self.check_end(row, position, behaviour, before)

    def check_end(
        self, row: dict[str, t.Any], position: int, behaviour: Behaviour, before: dict[str, t.Any]
    ) -> None:
        """See where a run stands after a behaviour of the step at a position."""
        if behaviour not in FAILURES:
            last = 0 if row["sequence"] == "SimulatedChild" else LAST
            if position == last or behaviour is Behaviour.FINISH:
                assert row["status"] is Status.FINISHED
            else:
                assert (row["status"], self.position(row)) == (Status.WAITING, position + 1)
                assert (row["attempt"], row["retries"], row["crashes"]) == (0, 0, 0)
            return
        assert self.position(row) == position
        retries = before["retries"] if self.position(before) == position else 0
        if behaviour is Behaviour.FAIL or retries == 2:
            assert (row["status"], row["retries"]) == (Status.FAILED, retries)
        else:
            assert (row["status"], row["retries"]) == (Status.WAITING, retries + 1)

    # The keepers, and time

    @rule(which=picks)
    @precondition(lambda self: self.alive)
    def look(self, which: int) -> None:
        worker = self.one_of(which, self.alive)
        before = self.world.rows()
        worker.look()
        self.check_freed(before, lambda row: row["worker_id"] == worker.name, [worker])

    @rule(which=picks)
    @precondition(lambda self: self.alive)
    def lapse(self, which: int) -> None:
        """All are silent for longer than the lease, and one sweeps then."""
        self.world.now += LEASE + 1
        self.look(which)
        self.sweep(which)

    @rule(pick=picks, which=picks)
    @precondition(lambda self: self.standing and self.alive)
    def overtake(self, pick: int, which: int) -> None:
        """Another process takes what one held that stands still, and stands still as well."""
        run_id = self.one_of(pick, self.standing).nudge.run_id
        self.lapse(which)
        now = (run_id, self.row(run_id)["version"])
        for nudge in [each for each in self.world.nudges if (each.run_id, each.version) == now]:
            stop = Stop(Point.BODY, 1, How.STAND)
            self.take(self.one_of(which, self.alive), nudge, [], stop)

    @rule(which=picks)
    @precondition(lambda self: self.alive)
    def sweep(self, which: int) -> None:
        worker = self.one_of(which, self.alive)
        silent = {each.name for each in self.world.workers if each.is_silent}
        before = self.world.rows()
        worker.sweep()
        self.check_freed(before, lambda row: row["worker_id"] in silent, [worker])
        for row in self.in_state(Status.BLOCKED):
            assert not self.knows(row)
        for row in before:
            if row["status"] is Status.BLOCKED and self.knows(row):
                assert self.row(row["id"])["status"] is Status.WAITING

    def check_freed(
        self,
        before: list[dict[str, t.Any]],
        may_be: t.Callable[[dict[str, t.Any]], bool],
        lookers: list[SimulatedWorker],
    ) -> None:
        """See that what the dead held is free, and what the living hold is not."""
        dead = {p.pid for each in lookers for p in each.processes if not p.lives}
        silent = {each.name for each in self.world.workers if each.is_silent}
        for row in before:
            if row["status"] is not Status.RUNNING:
                continue
            after = self.row(row["id"])
            if row["pid"] not in dead and not (may_be(row) and row["worker_id"] in silent):
                assert after == row
                continue
            failed = row["crashes"] + 1 == MAX_CRASHES
            assert after["status"] is (Status.FAILED if failed else Status.WAITING)
            assert after["crashes"] == row["crashes"] + 1
            kept = ("step", "retries", "attempt", "data")
            assert [after[name] for name in kept] == [row[name] for name in kept]

    @rule(which=picks, burst=st.booleans())
    @precondition(lambda self: self.alive)
    def kill_worker(self, which: int, burst: bool) -> None:
        self.one_of(which, self.alive).die()
        self.world.worker(burst=burst)

    @rule(which=picks, burst=st.booleans())
    @precondition(lambda self: self.alive)
    def shut_down(self, which: int, burst: bool) -> None:
        worker = self.one_of(which, self.alive)
        worker.shut_down()
        assert not any(row["worker_id"] == worker.name for row in self.world.rows())
        self.world.worker(burst=burst)

    @rule(seconds=st.sampled_from([1.0, 8.0, 8.0, LEASE / 2, LEASE + 1, 2 * LEASE]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(really=st.integers(0, 3))
    def rename(self, really: int) -> None:
        if really == 0:
            self.world.know(renamed=not self.world.is_renamed)

    # Looking

    @property
    def alive(self) -> list[SimulatedWorker]:
        return [worker for worker in self.world.workers if not worker.is_gone]

    @property
    def standing(self) -> list[Process]:
        return [p for p in self.world.processes if p.lives and p.stands_for]

    def in_state(self, status: Status) -> list[dict[str, t.Any]]:
        return [row for row in self.world.rows() if row["status"] is status]

    def row(self, run_id: int) -> dict[str, t.Any]:
        row = self.world.row(run_id)
        assert row is not None
        return row

    def position(self, row: dict[str, t.Any]) -> int:
        return self.world.books().positions[row["step"]]

    def knows(self, row: dict[str, t.Any]) -> bool:
        unknown = "StepOne" if self.world.is_renamed else "StepOneRenamed"
        return bool(row["step"] != unknown)


def test_nothing_is_lost_and_nothing_happens_twice(simulation: Simulation) -> None:
    _here.append(simulation)
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=ACTIONS,
            deadline=None,
            database=None,
            derandomize=not SEARCHES,
            phases=(Phase.generate, *([Phase.shrink] if SEARCHES else [])),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
