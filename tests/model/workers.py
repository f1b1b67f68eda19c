"""Workers without a Celery: each with the real keeper, and a child for each nudge."""

from __future__ import annotations

import dataclasses
import typing as t
from types import SimpleNamespace

from kombu import Queue

from flask_sequence.engine.in_hand import InHand
from flask_sequence.runtime import Runtime, WorkerProcess
from flask_sequence.worker.duties import DUTIES, FREE_OWN, RENEW_LEASE
from flask_sequence.worker.duties.duty import Duty, Work
from flask_sequence.worker.keeper import Keeper
from flask_sequence.worker.post import Post
from tests.model.faults import Failing, How
from tests.model.processes import Process

if t.TYPE_CHECKING:
    from tests.model.simulation import Simulation

LEASE = 30.0
_LOST = {Failing.UNSENT: How.UNSENT, Failing.UNANSWERED: How.UNANSWERED}


class SimulatedWorker:
    """A worker with its keeper, and a child for each nudge.

    :param simulation: Where it works.
    :param burst: For how many seconds a child goes on with the next step itself.
    """

    def __init__(self, simulation: Simulation, burst: float) -> None:
        base = simulation.runtime
        self.simulation = simulation
        self.failing: dict[str, Failing] = {}
        """How duties of the keeper fail at present, by their names."""
        self.suspected: set[tuple[int, int]] = set()
        """What its last sweep has seen in the hands of nobody: ids and versions."""
        self.processes: list[Process] = []
        self.is_gone = False
        self.alive_until = 0.0
        self.runtime: Runtime = dataclasses.replace(
            base,
            worker=WorkerProcess(
                id=f"worker-{next(simulation.numbers)}",
                engine=simulation.engine,
                in_hand=InHand(),
            ),
            settings=dataclasses.replace(base.settings, burst_seconds=burst),
        )
        queues = [Queue(base.default_queue)]
        consumer = SimpleNamespace(
            pool=self,
            controller=SimpleNamespace(concurrency=1),
            task_consumer=SimpleNamespace(queues=queues),
        )
        # Two, so that a look need not come with a sweep; each does all that it has in each round.
        looks, sweeps = [RENEW_LEASE, FREE_OWN], DUTIES
        self._looking = Keeper(self.runtime, consumer, list(map(self._breakable, looks)))
        self._sweeping = Keeper(self.runtime, consumer, list(map(self._breakable, sweeps)))
        self.look()

    @property
    def name(self) -> str:
        """Its id."""
        assert self.runtime.worker_id is not None
        return self.runtime.worker_id

    @property
    def is_silent(self) -> bool:
        """Whether its lease is over."""
        return self.alive_until <= self.simulation.database.now

    def does(self, duty: Duty) -> bool:
        """Tell whether nothing keeps its keeper from a duty."""
        return duty.name not in self.failing and not self.simulation.database.strangers.are_there

    def living(self) -> set[int]:
        """Give the process ids of its children."""
        return {process.pid for process in self.processes if process.lives}

    def look(self) -> None:
        """Let the keeper say that the worker lives, and look after its children."""
        self._round(self._looking)

    def sweep(self) -> None:
        """Let the keeper do all its duties."""
        self._round(self._sweeping)

    def _round(self, keeper: Keeper) -> None:
        failing, database = self.failing.get(RENEW_LEASE.name), self.simulation.database
        if failing in (None, Failing.UNANSWERED) and not database.strangers.are_there:
            self.alive_until = database.now + LEASE
        self.simulation.ticks += 3600.0  # each duty is due
        keeper.round()
        self.simulation.judge_crashes()

    def _breakable(self, duty: Duty) -> Duty:
        def begin(post: Post) -> Work:
            work = duty.begin(post)
            return lambda: self._do(duty.name, post, work)

        return dataclasses.replace(duty, begin=begin)

    def _do(self, name: str, post: Post, work: Work) -> float | None:
        failing = self.failing.get(name)
        if failing is Failing.AT_ONCE:
            raise ValueError("simulated")
        if failing is Failing.IN_TRANSACTION:
            with post.connect() as connection:
                connection.exec_driver_sql("SELECT nothing FROM no_such_table")
        with self.simulation.database.losing(_LOST.get(failing) if failing else None):
            return work()

    def die(self) -> None:
        """Kill the worker and all its children."""
        self.is_gone = True
        for process in self.processes:
            if process.is_busy:
                process.die()
            process.has_died = True

    def disconnect(self) -> None:
        """Close the connections of its keeper."""
        for keeper in (self._looking, self._sweeping):
            keeper.post.disconnect()

    def shut_down(self) -> None:
        """Shut it down cold."""
        self.die()
        self._sweeping.stop()
        self.alive_until = self.simulation.database.now
        self.simulation.judge_crashes()
