"""Workers without a Celery: each with the real keeper, and a child for each nudge."""

from __future__ import annotations

import dataclasses
import typing as t
from types import SimpleNamespace

from kombu import Queue

from flask_sequence.runtime import Nudge, Runtime
from flask_sequence.worker.keeper import Keeper
from tests.model.processes import Point, Process, current_process

if t.TYPE_CHECKING:
    from tests.model.simulation import Simulation

LEASE = 30.0


class Broker:
    """Stands in for a worker's publisher; what was published stays known for ever."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def publish(self, nudges: t.Sequence[Nudge], *, rest: bool = True) -> int:
        process = current_process()
        if process is not None:
            process.at(Point.PUBLISH)
        self._simulation.sent(nudges)
        return len(nudges)

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        return 0


class SimulatedWorker:
    """A worker with its keeper, and a child for each nudge."""

    def __init__(self, simulation: Simulation, burst: float) -> None:
        base = simulation.runtime
        self.simulation = simulation
        self.runtime: Runtime = dataclasses.replace(
            base,
            worker_id=f"worker-{next(simulation.numbers)}",
            in_worker=True,
            settings=dataclasses.replace(base.settings, burst_seconds=burst),
        )
        queues = [Queue(base.default_queue)]
        consumer = SimpleNamespace(
            pool=self,
            controller=SimpleNamespace(concurrency=1),
            task_consumer=SimpleNamespace(queues=queues),
        )
        self.keeper = Keeper(self.runtime, consumer)
        self.keeper._engine = simulation.keeper_engine
        self.processes: list[Process] = []
        self.is_gone = False
        self.alive_until = 0.0
        self.look()

    @property
    def name(self) -> str:
        """Its id."""
        assert self.runtime.worker_id is not None
        return self.runtime.worker_id

    @property
    def is_silent(self) -> bool:
        """Whether its lease is over."""
        return self.alive_until <= self.simulation.now

    def living(self) -> set[int]:
        """Give the process ids of its children."""
        return {process.pid for process in self.processes if process.lives}

    def look(self) -> None:
        """Let the keeper say that the worker lives, and look after its children."""
        self.keeper._renew()
        self.alive_until = self.simulation.now + LEASE
        self.keeper._free_dead()
        self.simulation.judge_crashes()

    def sweep(self) -> None:
        """Let the keeper sweep."""
        self.keeper._sweep()
        self.simulation.judge_crashes()

    def die(self) -> None:
        """Kill the worker and all its children."""
        self.is_gone = True
        for process in self.processes:
            if process.lives:
                process.die()

    def shut_down(self) -> None:
        """Shut it down cold."""
        self.die()
        self.keeper._stop_in_database()
        self.alive_until = self.simulation.now
        self.simulation.judge_crashes()
