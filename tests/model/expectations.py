"""What each action must lead to, as far as nothing disturbs it."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.worker.duties import (
    BLOCK_UNKNOWN,
    FREE_ORPHANS,
    FREE_OWN,
    PUBLISH_DUE,
    TAKE_BACK,
    UNBLOCK_KNOWN,
)
from tests.model.faults import Behaviour, Point
from tests.model.processes import Performed, Process
from tests.model.simulation import MAX_CRASHES, SWEEP, Simulation
from tests.model.steps import FAILURES, LAST
from tests.model.workers import SimulatedWorker

Row = dict[str, t.Any]


class Expectations:
    """Looks at a deployment, and knows what must have become of it.

    :param world: The deployment.
    """

    def __init__(self, world: Simulation) -> None:
        self.world = world

    # Looking

    @property
    def alive(self) -> list[SimulatedWorker]:
        """The workers that live."""
        return [worker for worker in self.world.workers if not worker.is_gone]

    @property
    def standing(self) -> list[Process]:
        """The processes that stand still and may go on."""
        return [p for p in self.world.processes if p.is_busy and p.stands_for]

    @property
    def can_deliver(self) -> bool:
        """Whether there is a nudge, and somebody who takes it."""
        brokers = self.world.brokers
        return bool(brokers.nudges and self.alive and not brokers.is_failing)

    @property
    def is_locked(self) -> bool:
        """Whether a stranger holds the database."""
        return self.world.database.strangers.are_there

    def in_state(self, status: Status) -> list[Row]:
        """Give the runs with a status."""
        return [row for row in self.world.database.rows() if row["status"] is status]

    def row(self, run_id: int) -> Row:
        """Give a run."""
        row = self.world.database.row(run_id)
        assert row is not None
        return row

    def position(self, row: Row) -> int:
        """Give the position of the step that a run is at."""
        return self.world.books().positions[row["step"]]

    def knows(self, row: Row) -> bool:
        """Tell whether the step that a run is at is known."""
        unknown = "StepOne" if self.world.is_renamed else "StepOneRenamed"
        return bool(row["step"] != unknown)

    # A process

    def check_taken(self, process: Process, before: Row) -> None:
        """See what a process has made of a nudge."""
        due = before["due_at"] is not None and before["due_at"] <= self.world.database.time()
        version = process.nudge.version
        if (
            before["status"] is Status.WAITING
            and before["version"] == version
            and due
            and self.knows(before)
        ):
            self.check_held(process, before)
        else:
            assert process.performed == [], "a nudge that is stale or early was performed"
            assert self.row(before["id"]) == before, "a nudge that is stale or early did something"
            assert process.error is None or process.is_disturbed

    def check_held(self, process: Process, before: Row) -> None:
        """See what a process has made of the run that it held, or was to take."""
        row = self.row(before["id"])
        if process.error is not None:
            assert process.is_disturbed, f"it raised {process.error!r}"
            assert isinstance(process.error, sa.exc.DBAPIError), f"it raised {process.error!r}"
        elif process.has_ended:
            assert row["pid"] != process.pid, "it has ended, and left its claim behind"
        if process.has_died or process.is_disturbed:
            return
        if not process.performed:
            assert not process.has_ended, "a fresh nudge was left alone"
            return
        performed = process.performed[-1]
        if process.stands_for is Point.BODY:
            assert (row["status"], row["pid"]) == (Status.RUNNING, process.pid)
            assert self.position(row) == performed.position
        if process.has_ended:
            self.check_end(row, performed, before)

    def check_end(self, row: Row, performed: Performed, before: Row) -> None:
        """See where a run is after a step has ended that nothing disturbed."""
        behaviour, position = performed.deed.behaviour, performed.position
        if behaviour not in FAILURES:
            assert not performed.has_failed, "a step raised that does not"
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

    # A keeper

    def check_freed(self, before: list[Row], worker: SimulatedWorker, *, swept: bool) -> None:
        """See that what the dead held is free, and what the living hold is not.

        Of what nothing keeps the keeper from.
        """
        processes = {process.pid: process for process in self.world.processes}
        silent = {each.name for each in self.world.workers if each.is_silent} - {worker.name}
        for row in before:
            if row["status"] is not Status.RUNNING:
                continue
            process, own = processes[row["pid"]], row["worker_id"] == worker.name
            died = own and process.has_died
            orphan = swept and row["worker_id"] in silent
            left = own and swept and process.has_ended
            seen = (row["id"], row["version"]) in worker.suspected
            must = (died and worker.does(FREE_OWN)) or (orphan and worker.does(FREE_ORPHANS))
            must = must or (left and seen and worker.does(TAKE_BACK))
            after = self.row(row["id"])
            if after == row:
                assert not must, f"run {row['id']} is not freed"
            else:
                assert died or orphan or left, f"run {row['id']} is freed, and its process lives"
                self.check_crash(row, after)

    def check_crash(self, row: Row, after: Row) -> None:
        """See that a run was taken from its process as after a crash."""
        failed = row["crashes"] + 1 == MAX_CRASHES
        assert after["status"] is (Status.FAILED if failed else Status.WAITING)
        assert after["crashes"] == row["crashes"] + 1
        kept = ("step", "retries", "attempt", "data")
        assert [after[name] for name in kept] == [row[name] for name in kept]

    def check_unknown(self, before: list[Row], worker: SimulatedWorker) -> None:
        """See that what is known again goes on."""
        for row in before:
            if row["status"] is Status.BLOCKED and self.knows(row) and worker.does(UNBLOCK_KNOWN):
                assert self.row(row["id"])["status"] is Status.WAITING
        overdue = self.world.database.time(-2 * SWEEP)
        for row in self.in_state(Status.WAITING):
            unknown = not self.knows(row) and row["due_at"] <= overdue
            assert not (unknown and worker.does(BLOCK_UNKNOWN)), f"run {row['id']} is not blocked"

    def check_published(self, before: list[Row], worker: SimulatedWorker, known: int) -> None:
        """See that a sweep has published what was due and had not been published lately.

        :param known: How many nudges there were before.
        """
        if self.world.brokers.is_failing or not worker.does(PUBLISH_DUE):
            return
        database = self.world.database
        now, quiet = database.time(), database.time(-SWEEP / 2)
        sent = {(nudge.run_id, nudge.version) for nudge in self.world.nudges[known:]}
        for row in before:
            silent = row["published_at"] is None or row["published_at"] <= quiet
            due = row["status"] is Status.WAITING and row["due_at"] <= now
            if due and silent and self.knows(row):
                assert (row["id"], row["version"]) in sent, f"run {row['id']} is not published"
