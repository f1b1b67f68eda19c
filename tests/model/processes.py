"""Processes that stand still, die, or lose an answer at a named point."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import itertools
import os
import sqlite3
import typing as t

from greenlet import getcurrent, greenlet

from flask_sequence.worker.task import perform
from tests.model.faults import Deed, How, Point, Stop, database_error

if t.TYPE_CHECKING:
    from flask_sequence.runtime import Nudge, Runtime
    from tests.model.database import Strangers

_pids = itertools.count(10_000_000)  # No process of this machine has such a number.


class Gone(BaseException):
    """Keeps a process that is dead from doing anything more."""


@dataclasses.dataclass
class Performed:
    """A body that was begun."""

    run_id: int
    position: int
    deed: Deed
    has_failed: bool = False


class Process(greenlet):  # type: ignore[misc]
    """A process of a worker, which performs what one nudge points at, and is idle then.

    It runs until it ends or is stopped, and gives control back then. Where it dies the operating
    system closes its connections, and nothing else happens: no handler, no ``finally``.

    :param runtime: The worker's runtime.
    :param number: Which of the worker's children it is.
    :param nudge: The nudge.
    :param plan: What the steps do that it performs, one after the other; then all just do.
    :param stops: Where it is stopped.
    :param strangers: Who may take the database's lock when it is.
    """

    def __init__(
        self,
        runtime: Runtime,
        number: int,
        nudge: Nudge,
        plan: t.Sequence[Deed] = (),
        stops: t.Sequence[Stop] = (),
        *,
        strangers: Strangers,
    ) -> None:
        super().__init__()
        assert runtime.worker is not None
        hands = copy.copy(runtime.worker.in_hand)  # as a fork does, with the memory that is shared
        worker = dataclasses.replace(runtime.worker, in_hand=hands)
        self.runtime = dataclasses.replace(runtime, worker=worker)
        self.number = number
        self.nudge = nudge
        self.pid = next(_pids)
        self.stands_for: Point | None = None
        self.has_begun = False
        self.has_died = False
        self.has_ended = False
        self.is_disturbed = False
        """Whether something went wrong that it has to cope with."""
        self.error: Exception | None = None
        """What has left it."""
        self.performed: list[Performed] = []
        self.connections: list[sqlite3.Connection] = []
        self.cursor: sqlite3.Cursor | None = None
        """That of its last statement."""
        self._plan = list(plan)
        self._stops = list(stops)
        self._strangers = strangers
        self._came: collections.Counter[Point] = collections.Counter()

    @property
    def lives(self) -> bool:
        """Whether the operating system knows it."""
        return not self.has_died

    @property
    def is_busy(self) -> bool:
        """Whether it lives and has not ended what it performs."""
        return not (self.has_died or self.has_ended)

    def run(self) -> None:
        """Perform what the nudge points at."""
        self.has_begun = True
        assert self.runtime.worker is not None
        self.runtime.worker.in_hand.be_child(self.number)
        try:
            perform(self.runtime, self.nudge.run_id, self.nudge.version)
        except BaseException as error:
            if not self.has_died:
                if not isinstance(error, Exception):
                    raise
                self.error = error
        self.has_ended = True

    def go(self, *stops: Stop) -> None:
        """Let it go on until it ends or is stopped, perhaps once more."""
        assert self.is_busy
        self._stops += stops
        self.stands_for = None
        self.is_disturbed |= self._strangers.are_there
        self.switch()

    def die(self) -> None:
        """Kill it."""
        self.has_died = True
        if self.cursor is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):
                self.cursor.close()  # else its statement outlives the connection
        for connection in self.connections:
            connection.close()

    def bury(self) -> None:
        """Let its frames go, in which it can do nothing more."""
        self.die()
        if self.has_begun and not self.has_ended:
            self.throw(Gone)

    def begin(self, run_id: int, position: int) -> Performed:
        """Tell a body what it is to do."""
        deed = self._plan.pop(0) if self._plan else Deed()
        self.performed.append(Performed(run_id, position, deed))
        return self.performed[-1]

    def at(self, point: Point) -> None:
        """Come to a point."""
        self.check_alive()
        self._came[point] += 1
        for stop in [each for each in self._stops if self._is_due(each, point)]:
            self._stop(stop)

    def _is_due(self, stop: Stop, point: Point) -> bool:
        many = 1 if stop.how in (How.WRITER, How.READER) else stop.times
        return stop.point is point and stop.number <= self._came[point] < stop.number + many

    def _stop(self, stop: Stop) -> None:
        point, _, how, times = stop
        self.is_disturbed |= how is not How.STAND
        if how in (How.WRITER, How.READER):
            self._strangers.come(times, writes=how is How.WRITER)
            return
        if how in (How.REFUSED, How.UNSENT, How.UNANSWERED):
            raise database_error(how)
        if how is How.DIE:
            self.die()
        self.stands_for = point
        assert self.parent is not None
        self.parent.switch()
        self.check_alive()

    def check_alive(self) -> None:
        """Let a dead process do nothing."""
        if self.has_died:
            raise Gone


def current_process() -> Process | None:
    """Give the process that runs here; None: it is that of the test."""
    current = getcurrent()
    return current if isinstance(current, Process) else None


def pid() -> int:
    """Give the process id of whoever asks."""
    process = current_process()
    return os.getpid() if process is None else process.pid


def checked_out(connection: sqlite3.Connection, record: object, proxy: object) -> None:
    """Note that a process has a connection."""
    process = current_process()
    if process is not None:
        process.check_alive()
        process.connections.append(connection)


def checked_in(connection: sqlite3.Connection | None, record: object) -> None:
    """Note that it has given it back."""
    process = current_process()
    if process is not None and connection in process.connections:
        process.connections.remove(connection)
