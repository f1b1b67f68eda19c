"""The fence: what stands before every COMMIT of a step, and lets only the holder through."""

from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import typing as t

import sqlalchemy as sa

from ..definition.data import encode
from ..errors import ClaimLost
from ..rows import moves, reads
from ..rows.claims import Claim, holds
from ..rows.moves import CHECKPOINT, Move
from ..runtime import Runtime
from .connections import own_move
from .own_errors import own_errors

logger: logging.Logger = logging.getLogger("flask_sequence")


class State(enum.Enum):
    """What is known of the last COMMIT that a fence has let through."""

    OPEN = "open"
    """Nothing is under way: the claim is that of the last commit."""
    SENT = "sent"
    """A move was sent with a COMMIT whose answer has not come."""
    CHECKED = "checked"
    """The same, but the step has written to another database too: the move comes afterwards."""
    MOVED = "moved"
    """The move with which the step ends is committed."""
    LOST = "lost"
    """Somebody else has the run: nothing more is let through."""


CHANGES: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.SENT, State.CHECKED, State.LOST}),
    State.SENT: frozenset({State.OPEN, State.MOVED, State.LOST}),
    State.CHECKED: frozenset({State.OPEN, State.MOVED, State.LOST}),
    State.MOVED: frozenset(),
    State.LOST: frozenset(),
}
"""The changes that there are."""

UNKNOWN = frozenset({State.SENT, State.CHECKED})
"""States in which only the database can tell what the claim is."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """What went with a COMMIT.

    :param move: The move.
    :param data: The data as of then, encoded.
    """

    move: Move
    data: str


class Way(enum.Enum):
    """How a transaction is committed, which decides when its move is made."""

    ALONG = enum.auto()
    """The move and COMMIT are sent in one message, here."""
    BEFORE = enum.auto()
    """The move is made in the transaction, and COMMIT follows."""
    AFTER = enum.auto()
    """Something else was written elsewhere: the claim is looked at, and the move made later."""


class Fence:
    """Stands before every commit of the connection in which a step writes.

    A commit inside the step is a checkpoint; the runner's own carries the move with which the step
    ends. Either goes through only by the version of the claim. ``engine.commits`` leads each COMMIT
    here, however it is reached.

    :param runtime: The application's runtime.
    :param claim: The claim, with its data as ``encode`` writes it.
    :param data: Returns the step's data.
    """

    def __init__(
        self, runtime: Runtime, claim: Claim, data: t.Callable[[], t.Mapping[str, t.Any]]
    ) -> None:
        self.runtime = runtime
        self.claim: Claim = claim
        """The claim as of the last commit that is known to have gone through."""
        self.state: State = State.OPEN
        self.sent: Sent | None = None
        """What went with the last COMMIT that was let through, until it is known to have failed."""
        self.move: Move = CHECKPOINT
        """The move that the next commit carries."""
        self.asked_to_repeat: bool = False
        """Whether the database has asked to begin the transaction again, seen or unseen."""
        self._data = data

    @property
    def is_unknown(self) -> bool:
        """Whether a COMMIT was sent and its answer has not come."""
        return self.state in UNKNOWN

    def move_alone(self) -> None:
        """Make the next move for a step that has neither written nor read anything."""
        with own_errors(), own_move(self.runtime) as connection:
            self._send(connection, self._next(), moves.make)
        self.settle(went_through=True)

    def let_through(self, connection: sa.Connection, way: Way) -> None:
        """Let a COMMIT through with the move that it carries, or refuse it.

        :param connection: What is about to be committed.
        :param way: How.
        :raises ClaimLost: If the run is no longer that of this process.
        """
        if self.state in (State.LOST, State.MOVED):
            raise ClaimLost
        if self.is_unknown:
            self._ask(connection)
        sent = self._next()
        if way is Way.AFTER:
            self.check(connection)
            self._change(State.CHECKED, sent)
        elif way is Way.BEFORE:
            self._send(connection, sent, moves.make)
        else:
            self._send(connection, sent, moves.make_and_commit)
            self.settle(went_through=True)

    def answered(self, connection: sa.Connection | None) -> None:
        """Take it that the COMMIT of the step's session has been answered.

        :param connection: With which the session has written to the database of the runs.
        """
        if self.state is State.CHECKED:
            assert connection is not None
            self._move_afterwards(connection)
        if self.is_unknown:
            self.settle(went_through=True)

    def settle(self, *, went_through: bool) -> None:
        """Note what became of a COMMIT whose answer had not come.

        :param went_through: Whether its move did.
        """
        assert self.sent is not None
        if not went_through:
            self._change(State.OPEN, None)
            return
        progress = {} if self._changed(self.sent) is None else moves.PROGRESS
        self.claim = self.claim.moved()._replace(data=self.sent.data, **progress)
        self._change(State.MOVED if self.sent.move.ends_step else State.OPEN, self.sent)

    def lose(self) -> None:
        """Note that somebody else has the run."""
        self._change(State.LOST, self.sent)

    def _change(self, state: State, sent: Sent | None) -> None:
        assert state in CHANGES[self.state], f"{self.state} -> {state}"
        self.state, self.sent = state, sent

    def _next(self) -> Sent:
        if not self.claim.is_mine:
            raise ClaimLost  # in a process that the step has forked
        limit = self.runtime.settings.max_data_bytes
        place = f"{self.claim.sequence}.{self.claim.step}"
        return Sent(self.move, encode(self._data(), max_bytes=limit, place=place))

    def _send(self, connection: sa.Connection, sent: Sent, make: t.Callable[..., bool]) -> None:
        self._change(State.SENT, sent)
        if not make(connection, self.claim, sent.move, self._changed(sent)):
            self._refuse()

    def _changed(self, sent: Sent) -> str | None:
        return None if sent.data == self.claim.data else sent.data

    def _ask(self, connection: sa.Connection) -> None:
        # A commit of this step was let through without an answer, and the step goes on.
        row = reads.look(connection, self.claim.id)
        assert self.sent is not None
        self.settle(went_through=row is not None and self.sent.move.went_through(self.claim, row))

    def check(self, connection: sa.Connection) -> None:
        """Look whether the claim still holds, before a COMMIT that carries no move.

        :param connection: To the database of the runs.
        :raises ClaimLost: If it does not.
        """
        row = reads.look(connection, self.claim.id)
        if row is None or row.version != self.claim.version or not holds(self.claim, row):
            self._refuse()

    def _refuse(self) -> t.NoReturn:
        self.lose()
        raise ClaimLost

    def _move_afterwards(self, connection: sa.Connection) -> None:
        # Two databases cannot be committed as one: the step's writes come first, so that they
        # happen at least once.
        assert self.sent is not None
        _warn_of_other_bind(self.claim.sequence, self.claim.step)
        with own_errors(), _transaction_on(connection):
            if not moves.make(connection, self.claim, self.sent.move, self._changed(self.sent)):
                self._refuse()


def _transaction_on(connection: sa.Connection) -> sa.Transaction:
    # In a test that is one transaction, it is in that still.
    is_inside = connection.in_transaction()
    return connection.begin_nested() if is_inside else connection.begin()


@functools.cache
def _warn_of_other_bind(sequence: str, step: str) -> None:
    logger.warning(
        "Step %s.%s uses more than one bind: its writes happen at least once, not exactly once."
        " Keep a step's writes in the bind of the runs.",
        sequence,
        step,
    )
