"""The doors of one attempt: its sessions and connections, before whose COMMIT its fence stands.

``engine.commits`` leads each COMMIT here, however it is reached.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import typing as t
import weakref

import sqlalchemy as sa
from flask.globals import app_ctx
from sqlalchemy.orm import Session

from ..errors import ClaimLost, SetupError, TransactionDoomedError
from ..rows.dialects import release_guard, set_guard
from ..rows.endings import ending_in
from ..rows.moves import Move
from ..rows.prepared import can_commit_along
from ..runtime import Runtime
from .connections import bind_of, is_same_place
from .fence import Fence, Way

DOORS = "flask_sequence_doors"
"""Under which ``session.info`` names the doors of the step that the session belongs to."""

doors_of: weakref.WeakKeyDictionary[sa.Connection, Doors] = weakref.WeakKeyDictionary()
"""The doors of a connection, whichever thread commits it."""

_READS = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n)*(SELECT|SHOW|EXPLAIN|SET|PRAGMA|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE | re.DOTALL,
)


class Doors:
    """The sessions and connections of one attempt, and the fence that stands before their commits.

    :param fence: The fence.
    """

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.runtime: Runtime = fence.runtime
        self._context: object = app_ctx._get_current_object()  # type: ignore[attr-defined]
        self._sessions: dict[Session, list[sa.Connection]] = {}
        self._guarded: sa.Connection | None = None
        self._writes_elsewhere = False
        self.is_closed: bool = False
        """Whether the attempt has ended: what a thread of it still writes is not part of it."""

    def commit(self, move: Move) -> None:
        """Commit the step that has ended: what it wrote, and the move.

        Where it wrote nothing, and read nothing, the move is committed alone: that spares the
        session, and on PostgreSQL a transaction.

        :param move: The move with which the step ends.
        """
        self.fence.move = move
        begun = self._begun()
        if len(begun) > 1:
            raise SetupError(
                "A step uses db.session in several threads, where each has a session of its own,"
                " and leaves more than one of them open: call db.session.remove() in its threads."
            )
        if begun:
            begun[0].commit()
        elif self.fence.is_unknown:
            self.runtime.db.session.commit()
        else:
            self.fence.move_alone()

    def roll_back(self) -> None:
        """Roll back whatever the step has left open."""
        for session in self._begun():
            with contextlib.suppress(Exception):
                session.rollback()

    def _begun(self) -> list[Session]:
        """Return the sessions of the step that are open; of a ``db.session`` by thread, many."""
        registry = self.runtime.db.session.registry
        mine = [registry()] if registry.has() else []
        others = [session for session in self._sessions if session not in mine]
        return [session for session in mine + others if _is_begun(session)]

    def cover(self, session: Session) -> bool:
        """Tell whether a session is the step's ``db.session``, whichever that is by now."""
        if session.info.get(DOORS) is self:
            return True
        if app_ctx._get_current_object() is not self._context:  # type: ignore[attr-defined]
            return False
        registry = self.runtime.db.session.registry
        return registry.has() and session is registry()

    def meet(self, session: Session) -> None:
        """Know a session that has begun, in whichever thread."""
        session.info[DOORS] = self
        self._sessions.setdefault(session, [])

    def open(self, session: Session, connection: sa.Connection) -> None:
        """Stand before the commits of a connection on which the session has begun a transaction."""
        self.meet(session)
        doors_of[connection] = self
        self._sessions[session].append(connection)
        if self.leads_to_runs(connection):
            if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                raise SetupError(
                    "A step's db.session is set to AUTOCOMMIT, so its writes and its move"
                    " cannot be one commit: use a connection of its own, as in"
                    " db.engine.connect()."
                )
            self.guard(connection)

    def connection_for(self, session: Session) -> sa.Connection | None:
        """Return the connection with which a session has begun to write runs, if it has."""
        for connection in self._sessions.get(session, ()):
            if connection.in_transaction() and self.leads_to_runs(connection):
                return connection
        return None

    def leads_to_runs(self, connection: sa.Connection) -> bool:
        """Tell whether a connection leads to the database of the runs."""
        worker = self.runtime.worker
        return is_same_place(connection, worker.engine if worker else bind_of(self.runtime))

    def guard(self, connection: sa.Connection) -> None:
        """Begin to watch for writes that the server drops by itself."""
        self._guarded = connection
        set_guard(connection)

    def to_commit(self, connection: sa.Connection, *, along: bool) -> None:
        """Let a COMMIT through, or refuse it.

        :param connection: What is about to be committed.
        :param along: Whether COMMIT may be sent here, together with the move.
        """
        if self.is_closed:
            raise ClaimLost
        if self._guarded is connection:
            self._guarded = None
            if not release_guard(connection):
                raise TransactionDoomedError(
                    "The server has dropped earlier writes of this transaction, after a deadlock"
                    " or a statement that commits by itself (DDL)."
                )
        if self._writes_elsewhere:
            self.fence.let_through(connection, Way.AFTER)
        elif along and can_commit_along(connection):
            self.fence.let_through(connection, Way.ALONG)
        else:
            self.fence.let_through(connection, Way.BEFORE)

    def to_commit_elsewhere(self) -> None:
        """Refuse the COMMIT of another database where the claim is lost.

        A session commits its connections in any order.
        """
        for connection in filter(self.leads_to_runs, self._connections()):
            if connection.in_transaction() and self._writes_elsewhere:
                self.fence.check(connection)

    def answered(self, session: Session) -> None:
        """Note that the COMMIT of a session has been answered."""
        self._writes_elsewhere = False
        # The connection is the session's still: from a small pool there may be no other.
        leading = filter(self.leads_to_runs, self._sessions.get(session, ()))
        connection = next((each for each in leading if doors_of.pop(each, None)), None)
        self.fence.answered(connection)

    def sent(self, connection: sa.Connection, statement: str) -> None:
        """Look at a statement that is about to be sent.

        :raises SetupError: If it would end the transaction past the fence.
        """
        if not self.leads_to_runs(connection):
            self._writes_elsewhere |= not _READS.match(statement)
            return
        ending = ending_in(connection.dialect.name, statement)
        if ending is not None and not is_twophase(connection):
            raise SetupError(
                f"A step sent {ending} as text, which ends its transaction without the check"
                " that keeps its writes and its move together: call db.session.commit() or"
                " db.session.rollback(); what commits by itself belongs on a connection of its"
                " own, as in db.engine.begin()."
            )

    def close(self) -> None:
        """Let all sessions and connections go; a session that a thread keeps commits no more."""
        self.is_closed = True
        registry = self.runtime.db.session.registry
        if registry.has():  # a thread may hold one that has not begun
            self.meet(registry())
        for connection in self._connections():
            doors_of.pop(connection, None)
        for session in self._sessions:
            if _is_begun(session):  # another thread's, which nobody would close
                with contextlib.suppress(Exception):
                    session.close()
        self._sessions.clear()

    def _connections(self) -> t.Iterator[sa.Connection]:
        return itertools.chain.from_iterable(self._sessions.values())


def _is_begun(session: Session) -> bool:
    return session.in_transaction() or bool(session.new or session.dirty or session.deleted)


def is_twophase(connection: sa.Connection) -> bool:
    """Tell whether a connection is in a transaction that is prepared before it is committed."""
    return isinstance(connection.get_transaction(), sa.TwoPhaseTransaction)
