"""The fence: what stands before every commit of a step, and lets only the holder through."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import typing as t
import weakref

import sqlalchemy as sa
from flask.globals import app_ctx
from sqlalchemy.orm import Session, SessionTransaction

from ..definition.data import encode
from ..errors import ClaimLost, TransactionDoomedError
from ..rows import moves, reads
from ..rows.claims import Claim, Row, holds
from ..rows.dialects import is_aborted, release_guard, set_guard, short_transaction
from ..runtime import Runtime
from .sessions import bind_of, connection_of, give_back, own_move

logger: logging.Logger = logging.getLogger("flask_sequence")

Move = t.Callable[[sa.Connection, Claim, str | None], bool]
"""A move of ``moves`` with everything settled but the claim and the changed data."""


class Fence:
    """Stands before every commit of the session in which a step writes.

    ``db.session.commit()`` in a step is a checkpoint; the runner's own commit carries the move
    that it has put into ``move``. Either goes through only by the version of the claim.

    :param runtime: The application's runtime.
    :param claim: The claim, by which the first commit goes.
    :param data: Gives the step's data.
    :param is_encoded: Whether the data of the claim are as ``encode`` writes them.
    """

    def __init__(
        self,
        runtime: Runtime,
        claim: Claim,
        data: t.Callable[[], t.Mapping[str, t.Any]],
        *,
        is_encoded: bool = False,
    ) -> None:
        self.runtime = runtime
        self.claim: Claim = claim if is_encoded else claim._replace(text=encode(data()))
        """The claim as of the last commit."""
        self.move: Move = t.cast(Move, moves.checkpoint)
        self.moved: bool = False
        self._data = data
        self._sent: str | None = None
        self._sent_move = self.move
        self._other_bind = False
        self._connection: sa.Connection | None = None
        self._bind: sa.Engine | sa.Connection | None = None
        self._context: object = None
        self._sessions: list[Session] = []

    @property
    def unknown(self) -> bool:
        """Whether a commit was sent and its answer has not come."""
        return self._sent is not None

    @property
    def carries_move(self) -> bool:
        """Whether the commit that was sent is the runner's own, with which the step ends."""
        return self._sent_move is not moves.checkpoint

    def passed(self) -> None:
        """Take it that the commit that was sent went through."""
        assert self._sent is not None
        self.claim = self.claim._replace(version=self.claim.version + 1, text=self._sent)
        self._sent = None
        self.moved = self.carries_move

    def enter(self) -> None:
        """Stand in the app context that is active here."""
        self._context = app_ctx._get_current_object()  # type: ignore[attr-defined]

    def covers(self, session: Session) -> bool:
        """Tell whether a session is the step's ``db.session``, whichever that is by now."""
        if app_ctx._get_current_object() is not self._context:  # type: ignore[attr-defined]
            return False
        return session is self.runtime.db.session()

    def attach(self, session: Session) -> None:
        """Stand before the commits of a session, which is about to need a connection."""
        give_back(self.runtime)
        if session.info.get(_FENCE) is not self:
            self._sessions.append(session)
            session.info[_FENCE] = self

    def detach(self) -> None:
        """Let all sessions go."""
        for session in self._sessions:
            session.info.pop(_FENCE, None)
        self._sessions.clear()

    def begun(self, transaction: SessionTransaction, connection: sa.Connection) -> None:
        """Note that a session has begun a transaction on a connection."""
        if transaction.parent is not None:
            return
        self._bind = bind_of(self.runtime)
        if connection.engine is self._bind.engine:
            _watch(connection.engine)
            set_guard(connection)
        else:
            self._other_bind = True

    def commit(self) -> None:
        """Commit the step that has ended: what it wrote, and the move.

        Where it wrote nothing, and read nothing, the move is committed alone: that spares the
        session, and on PostgreSQL a transaction.
        """
        session = self.runtime.db.session
        if self.unknown or (session.registry.has() and _is_begun(session())):
            session.commit()
        else:
            self._move_alone()

    def _move_alone(self) -> None:
        text = encode(self._data(), max_bytes=self.runtime.settings.max_data_bytes)
        with own_move(self.runtime) as connection:
            self._sent, self._sent_move = text, self.move
            if not self.move(connection, self.claim, self._changed(text)):
                self._sent = None
                raise ClaimLost
        self.passed()

    def before_commit(self, session: Session) -> None:
        """Make the move in the transaction that a session is about to commit."""
        if session.in_nested_transaction():
            return
        text = encode(self._data(), max_bytes=self.runtime.settings.max_data_bytes)
        session.flush()
        connection = connection_of(session)
        if isinstance(self._bind, sa.Connection):
            _check_guard(connection)  # in a test's own transaction, which is not committed
        if self.unknown:
            self._ask(connection)
        if self._other_bind:
            self._check(connection)
        elif not self.move(connection, self.claim, self._changed(text)):
            raise ClaimLost
        self._sent, self._sent_move, self._connection = text, self.move, connection

    def check_sent(self, connection: sa.Connection) -> None:
        """Refuse a COMMIT of what the server has dropped, or will drop, without a word."""
        if not self.unknown or connection is not self._connection:
            return
        _check_guard(connection)
        if is_aborted(connection):
            raise TransactionDoomedError(
                "A statement failed after the step had ended, in a listener of the application"
                " that did not raise the error: nothing of the transaction can be committed."
            )

    def after_commit(self, session: Session) -> None:
        """Count a commit that has gone through."""
        if session.in_nested_transaction() or self._sent is None:
            return
        if self._other_bind:
            self._move_afterwards(self._sent)
        self.passed()

    def _changed(self, text: str) -> str | None:
        return None if text == self.claim.text else text

    def _ask(self, connection: sa.Connection) -> None:
        # A commit of this step has raised, and the step goes on: did it go through?
        row = reads.look(connection, self.claim.id)
        if row is not None and row.version == self.claim.version + 1 and self._is_ours(row):
            self.passed()
        self._sent = None

    def _check(self, connection: sa.Connection) -> None:
        row = reads.look(connection, self.claim.id)
        if row is None or row.version != self.claim.version or not self._is_ours(row):
            raise ClaimLost

    def _is_ours(self, row: Row) -> bool:
        return holds(self.claim, row)

    def _move_afterwards(self, text: str) -> None:
        # Two databases cannot be committed as one: the step's writes come first, so that they
        # happen at least once.
        self._other_bind = False
        _warn_of_other_bind(self.claim.sequence, self.claim.step)
        with short_transaction(bind_of(self.runtime)) as connection:
            if not self.move(connection, self.claim, self._changed(text)):
                raise ClaimLost


def _is_begun(session: Session) -> bool:
    return session.in_transaction() or bool(session.new or session.dirty or session.deleted)


def _check_guard(connection: sa.Connection) -> None:
    if not release_guard(connection):
        raise TransactionDoomedError(
            "The server has dropped earlier writes of this transaction, after a deadlock or a"
            " statement that commits by itself (DDL)."
        )


@functools.cache
def _warn_of_other_bind(sequence: str, step: str) -> None:
    logger.warning(
        "Step %s.%s uses more than one bind: its writes happen at least once, not exactly once."
        " Keep a step's writes in the bind of the runs.",
        sequence,
        step,
    )


_FENCE = "flask_sequence_fence"
"""Under which ``session.info`` names the fence that stands before a session's commits."""

_fence: contextvars.ContextVar[Fence | None] = contextvars.ContextVar("fence", default=None)


@contextlib.contextmanager
def fenced(fence: Fence) -> t.Iterator[Fence]:
    """Let a fence stand before every commit of ``db.session`` in this app context."""
    token = _fence.set(fence)
    try:
        fence.enter()
        yield fence
    finally:
        _fence.reset(token)
        fence.detach()


@contextlib.contextmanager
def unfenced() -> t.Iterator[None]:
    """Leave the step that is being performed here, for a run that is performed inside it."""
    token = _fence.set(None)
    try:
        yield
    finally:
        _fence.reset(token)


def run_in_hand() -> int | None:
    """Give the id of the run of which a step is being performed here."""
    fence = _fence.get()
    return None if fence is None else fence.claim.id


@sa.event.listens_for(Session, "after_transaction_create")
def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    fence = _fence.get()
    if fence is not None and transaction.parent is None and fence.covers(session):
        fence.attach(session)


@sa.event.listens_for(Session, "after_begin")
def _after_begin(
    session: Session, transaction: SessionTransaction, connection: sa.Connection
) -> None:
    fence = _fence.get()
    if fence is not None and fence.covers(session):
        fence.begun(transaction, connection)


@sa.event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    fence = session.info.get(_FENCE)
    if fence is not None:
        fence.before_commit(session)


@sa.event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    fence = session.info.get(_FENCE)
    if fence is not None:
        fence.after_commit(session)


_watched: weakref.WeakSet[sa.Engine] = weakref.WeakSet()


def _watch(engine: sa.Engine) -> None:
    # When the first step comes, the application has set up the listeners of its own.
    if engine not in _watched:
        _watched.add(engine)
        sa.event.listen(engine, "commit", _before_real_commit)


def _before_real_commit(connection: sa.Connection) -> None:
    fence = _fence.get()
    if fence is not None:
        fence.check_sent(connection)
