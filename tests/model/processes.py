"""Processes that stand still, die, or lose an answer at a named point."""

from __future__ import annotations

import collections
import enum
import itertools
import os
import sqlite3
import typing as t

from greenlet import getcurrent, greenlet

from flask_sequence.worker.task import perform

if t.TYPE_CHECKING:
    from flask_sequence.runtime import Nudge, Runtime


class Behaviour(enum.StrEnum):
    """What a step does."""

    DO = "do"
    CHECKPOINT = "checkpoint"
    GUARDED = "guarded"
    """A checkpoint whose errors the step swallows."""
    RAISE = "raise"
    RAISE_LATE = "raise late"
    """After a checkpoint."""
    RETRY = "retry"
    FAIL = "fail"
    FINISH = "finish"
    START = "start"
    """Starts another run."""


class Point(enum.StrEnum):
    """Where a process may be stopped."""

    BODY = "body"
    WROTE = "wrote"
    COMMIT = "commit"
    COMMITTED = "committed"
    PUBLISH = "publish"


class How(enum.StrEnum):
    """How it is stopped there."""

    DIE = "die"
    STAND = "stand"
    REFUSED = "refused"
    """The database refuses the commit."""
    UNANSWERED = "unanswered"
    """The commit goes through, and its answer is lost."""


class Stop(t.NamedTuple):
    """That a process is stopped when it comes to a point."""

    point: Point
    number: int
    """When it comes there for the first, the second ... time."""
    how: How


STOPS: tuple[tuple[Point, How], ...] = (
    *((point, How.DIE) for point in Point),
    # Not where SQLite's one lock is held: all others would wait for it.
    *((point, How.STAND) for point in (Point.BODY, Point.COMMITTED, Point.PUBLISH)),
    (Point.COMMIT, How.REFUSED),
    (Point.COMMITTED, How.UNANSWERED),
)
"""Where a process can be stopped how."""

_pids = itertools.count(10_000_000)  # No process of this machine has such a number.


class Gone(BaseException):
    """Keeps a process that is dead from doing anything more."""


class Process(greenlet):  # type: ignore[misc]
    """A process of a worker, which performs what one nudge points at.

    It runs until it ends or is stopped, and gives control back then. Where it dies the operating
    system closes its connections, and nothing else happens: no handler, no ``finally``.

    :param runtime: The worker's runtime.
    :param nudge: The nudge.
    :param plan: What the steps do that it performs, one after the other; then all just do.
    :param stop: Where it is stopped.
    """

    def __init__(
        self,
        runtime: Runtime,
        nudge: Nudge,
        plan: t.Sequence[Behaviour] = (),
        stop: Stop | None = None,
    ) -> None:
        super().__init__()
        self.runtime = runtime
        self.nudge = nudge
        self.pid = next(_pids)
        self.stands_for: Point | None = None
        self.has_begun = False
        self.has_died = False
        self.has_ended = False
        self.performed: list[tuple[int, int, Behaviour]] = []
        """Run, position and behaviour of each body that was begun."""
        self.connections: list[sqlite3.Connection] = []
        self._plan = list(plan)
        self._stop = stop
        self._came: collections.Counter[Point] = collections.Counter()

    @property
    def lives(self) -> bool:
        """Whether the operating system knows it."""
        return not (self.has_died or self.has_ended)

    def run(self) -> None:
        """Perform what the nudge points at."""
        self.has_begun = True
        try:
            perform(self.runtime, self.nudge.run_id, self.nudge.version)
        except BaseException:
            if not self.has_died:
                raise
        self.has_ended = True

    def go(self, stop: Stop | None = None) -> None:
        """Let it go on until it ends or is stopped, perhaps once more."""
        assert self.lives
        self._stop = stop or self._stop
        self.stands_for = None
        self.switch()

    def die(self) -> None:
        """Kill it."""
        self.has_died = True
        for connection in self.connections:
            connection.close()

    def bury(self) -> None:
        """Let its frames go, in which it can do nothing more."""
        self.die()
        if self.has_begun and not self.has_ended:
            self.throw(Gone)

    def begin(self, run_id: int, position: int) -> Behaviour:
        """Tell a body what it is to do."""
        behaviour = self._plan.pop(0) if self._plan else Behaviour.DO
        self.performed.append((run_id, position, behaviour))
        return behaviour

    def fails(self) -> None:
        """Note that the body fails, whatever it was told."""
        self.performed[-1] = (*self.performed[-1][:2], Behaviour.RAISE)

    def at(self, point: Point) -> None:
        """Come to a point."""
        self.check_alive()
        self._came[point] += 1
        if self._stop is None or (point, self._came[point]) != self._stop[:2]:
            return
        how, self._stop = self._stop.how, None
        if how in (How.REFUSED, How.UNANSWERED):
            raise _database_error(how)
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


def _database_error(how: How) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(f"simulated: {how}")
    error.sqlite_errorcode = {How.REFUSED: sqlite3.SQLITE_BUSY}.get(how, sqlite3.SQLITE_IOERR)
    return error


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
