"""What steps do, where processes may be stopped, and what else may go wrong."""

from __future__ import annotations

import enum
import sqlite3
import typing as t


class Behaviour(enum.StrEnum):
    """What a step does."""

    DO = "do"
    CHECKPOINT = "checkpoint"
    RAISE = "raise"
    RAISE_LATE = "raise late"
    """After a checkpoint."""
    RETRY = "retry"
    FAIL = "fail"
    FINISH = "finish"
    START = "start"
    """Starts another run."""


class Way(enum.StrEnum):
    """How a step commits a checkpoint."""

    SESSION = "session"
    ROOT = "root"
    """By the session's transaction."""
    BLOCK = "block"
    """By the end of a ``with db.session.begin()``."""
    OPEN_SAVEPOINT = "open savepoint"
    """The same, while a savepoint is open."""
    CONNECTION = "connection"
    TRANSACTION = "transaction"
    """By the transaction of the connection."""
    RELEASED = "released"
    """By the session, after a savepoint."""
    WITHIN = "within"
    """By the session, inside the block of a savepoint."""


class Errors(enum.StrEnum):
    """What a step does when a checkpoint raises."""

    PASSED_ON = "passed on"
    REPLACED = "replaced"
    """It raises an error of its own."""
    SWALLOWED = "swallowed"
    """It rolls back, looks what is there, and goes on."""
    ALL_SWALLOWED = "all swallowed"
    """The same, of every exception."""


class Deed(t.NamedTuple):
    """What a step does, and how."""

    behaviour: Behaviour = Behaviour.DO
    way: Way = Way.SESSION
    errors: Errors = Errors.PASSED_ON


class Point(enum.StrEnum):
    """Where a process may be stopped."""

    BODY = "body"
    WROTE = "wrote"
    COMMIT = "commit"
    COMMITTED = "committed"
    PUBLISH = "publish"
    UPDATE = "update"
    """Before a claim or a move is sent."""
    UPDATED = "updated"
    LOOK = "look"
    """Before a run is looked at."""


class How(enum.StrEnum):
    """How it is stopped there."""

    DIE = "die"
    STAND = "stand"
    REFUSED = "refused"
    """The database refuses what is sent."""
    UNSENT = "unsent"
    """It does not arrive, and no answer comes."""
    UNANSWERED = "unanswered"
    """It arrives, and its answer is lost."""
    WRITER = "writer"
    """A stranger writes, and has the lock from here on."""
    READER = "reader"
    """A stranger reads, and lets nobody commit from here on."""


class Stop(t.NamedTuple):
    """That a process is stopped when it comes to a point."""

    point: Point
    number: int
    """When it comes there for the first, the second ... time."""
    how: How
    times: int = 1
    """How often in a row; for a stranger, how many pauses the stranger stays."""


_SENT = (Point.UPDATE, Point.LOOK, Point.COMMIT)
STOPS: tuple[tuple[Point, How], ...] = (
    *((point, How.DIE) for point in Point),
    # Not where SQLite's one lock is held: all others would wait for it.
    *((point, How.STAND) for point in (Point.BODY, Point.COMMITTED, Point.PUBLISH)),
    *((point, How.REFUSED) for point in _SENT),
    *((point, How.UNSENT) for point in _SENT),
    *((point, How.UNANSWERED) for point in (Point.UPDATED, Point.COMMITTED)),
    *((point, How.WRITER) for point in (Point.BODY, Point.COMMITTED, Point.UPDATE)),
    *((point, How.READER) for point in (Point.BODY, Point.WROTE, Point.UPDATE)),
)
"""Where a process can be stopped how."""


class Failing(enum.StrEnum):
    """How a duty of a keeper fails."""

    AT_ONCE = "at once"
    IN_TRANSACTION = "in a transaction"
    UNSENT = "unsent"
    """Its commits do not arrive."""
    UNANSWERED = "unanswered"
    """Its commits arrive, and their answers are lost."""


_CODES = {How.REFUSED: sqlite3.SQLITE_BUSY}


def database_error(how: How) -> sqlite3.OperationalError:
    """Make the driver's error for a statement that came to nothing, or seems to.

    :param how: What has happened to it.
    """
    error = sqlite3.OperationalError(f"simulated: {how}")
    error.sqlite_errorcode = _CODES.get(how, sqlite3.SQLITE_IOERR)
    return error
