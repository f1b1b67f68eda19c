"""Workers without a Celery: each with the real keeper, and a child for each nudge."""

from __future__ import annotations

import dataclasses
import typing as t
from types import SimpleNamespace

from kombu import Queue

from flask_sequence.engine.in_hand import InHand
from flask_sequence.runtime import Nudge, Runtime, WorkerProcess
from flask_sequence.worker.duties import (
    BLOCK_UNKNOWN,
    FREE_ORPHANS,
    FREE_OWN,
    PUBLISH_DUE,
    RENEW_LEASE,
    UNBLOCK_KNOWN,
)
from flask_sequence.worker.duties.duty import Duty
from flask_sequence.worker.duties.shutdown import leave
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
        self.keeper = Keeper(self.runtime, consumer)
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
        self._do(RENEW_LEASE)
        self.alive_until = self.simulation.now + LEASE
        self._do(FREE_OWN)
        self.simulation.judge_crashes()

    def sweep(self) -> None:
        """Let the keeper sweep."""
        for duty in (FREE_OWN, FREE_ORPHANS, BLOCK_UNKNOWN, UNBLOCK_KNOWN, PUBLISH_DUE):
            self._do(duty)
        self.simulation.judge_crashes()

    def _do(self, duty: Duty) -> None:
        self.keeper.perform(duty)

    def die(self) -> None:
        """Kill the worker and all its children."""
        self.is_gone = True
        for process in self.processes:
            if process.lives:
                process.die()

    def shut_down(self) -> None:
        """Shut it down cold."""
        self.die()
        leave(self.keeper.post)
        self.alive_until = self.simulation.now
        self.simulation.judge_crashes()
