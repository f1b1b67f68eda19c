"""The workers of a storm, each in a slot that is filled again when its worker is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t
from pathlib import Path

from tests.support.hosts import Host
from tests.support.waiting import wait_until
from tests.support.workers import Worker, write_module

SOURCES = {
    False: """
        from tests.storm.place import this_place
        from tests.storm.tables import make_app

        app = make_app(this_place())
    """,
    True: """
        from tests.storm.celery_chain import celery_app
    """,
}
"""The worker's module; for the peer, too."""

if t.TYPE_CHECKING:
    from tests.storm.place import Place


class Crew:
    """The workers.

    :param place: The storm.
    :param hosts: The hosts that they run on in turn, if not this one.
    """

    def __init__(self, place: Place, hosts: t.Sequence[Host] = ()) -> None:
        options = place.options
        self.place = place
        self.hosts = hosts
        self.folder = Path(place.folder)
        self.is_peer = options.peer is not None
        self.module = write_module(self.folder, SOURCES[self.is_peer], "storm_app")
        self.options = ["-P", options.pool, "-c", str(options.concurrency)]
        self.started: list[Worker] = []
        self.stopped: set[int] = set()
        self.ended: list[str] = []
        """How workers ended that had not been killed."""
        self.slots: list[Worker] = []

    def __enter__(self) -> t.Self:
        self.slots = [self.launch(slot) for slot in range(self.place.options.workers)]
        for worker in self.slots:
            wait_until(lambda worker=worker: worker.is_ready, 60, message=worker.log)  # type: ignore[misc]
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.started:
            worker.kill()

    def launch(self, slot: int) -> Worker:
        """Start a worker, and do not wait.

        :param slot: Which.
        """
        environment = self.place.environment
        host = self.hosts[slot % len(self.hosts)] if self.hosts else None
        worker = Worker(
            self.folder,
            self.module,
            *self.options,
            *("-n", f"storm{len(self.started)}@%h"),
            celery=self.is_peer,
            env=environment,
            host=host,
        )
        self.started.append(worker)
        return worker.launch()

    def busy_slots(self) -> list[int]:
        """Give the slots whose worker is up and not stopped."""
        up = [slot for slot, worker in enumerate(self.slots) if worker.is_ready]
        return [slot for slot in up if slot not in self.stopped]

    def refill(self) -> None:
        """Start a worker in each slot whose worker has ended by itself, as a supervisor does."""
        for slot, worker in enumerate(self.slots):
            if worker.exit_code is not None:
                said = worker.log.strip().splitlines()[-1:]
                self.ended.append(f"worker {slot}, {worker.pid}: {worker.exit_code}, {said}")
                self.slots[slot] = self.launch(slot)

    def kill_child(self, slot: int, pick: t.Callable[[list[int]], int]) -> str:
        """Kill a process of the pool, and tell which.

        :param slot: Whose.
        :param pick: Chooses one.
        """
        children = self.slots[slot].children
        if not children:  # the one that was killed before has no successor yet
            return self.kill_worker(slot)
        child = pick(children)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return f"child {child} of worker {slot}"

    def kill_main(self, slot: int) -> str:
        """Kill the main process only, and start a new worker beside the orphans."""
        self.slots[slot].send(signal.SIGKILL)
        self.slots[slot].wait()
        return self._replace(slot)

    def kill_worker(self, slot: int) -> str:
        """Kill a worker with its pool, and start a new one."""
        self.slots[slot].kill()
        return self._replace(slot)

    def _replace(self, slot: int) -> str:
        pid = self.slots[slot].pid
        self.slots[slot] = self.launch(slot)
        return f"worker {slot}, {pid}"

    def stop(self, slot: int) -> str:
        """Stop a worker with its pool, as if its machine slept."""
        self.stopped.add(slot)
        os.killpg(self.slots[slot].pid, signal.SIGSTOP)
        return f"worker {slot}"

    def resume(self, slot: int) -> None:
        """End such a sleep."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.slots[slot].pid, signal.SIGCONT)
        self.stopped.discard(slot)

    def dismiss(self) -> None:
        """Shut all down warmly, so that nothing is written any more."""
        for worker in self.slots:
            if worker.exit_code is None:
                worker.send(signal.SIGTERM)
        for worker in self.slots:
            with contextlib.suppress(AssertionError):
                worker.wait(15)
        for worker in self.started:
            worker.kill()
