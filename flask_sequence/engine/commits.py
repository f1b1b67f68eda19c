"""Every COMMIT of a step is led to the doors of its attempt, however it is reached.

The engine's ``commit`` event comes last before COMMIT, whether that is reached by the session, a
block, the connection, or with savepoints open. Two phases have events of their own, and a COMMIT
that is sent as text is refused.
"""

from __future__ import annotations

import contextlib
import contextvars
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from ..errors import ClaimLost
from .connections import bind_of, connection_of, give_back
from .doors import DOORS, Doors, doors_of, is_twophase
from .fence import Fence
from .own_errors import is_free, mark_own

_current: contextvars.ContextVar[Doors | None] = contextvars.ContextVar("doors", default=None)


@contextlib.contextmanager
def fenced(fence: Fence) -> t.Iterator[Doors]:
    """Let a fence stand before every commit of ``db.session`` in this app context."""
    doors = Doors(fence)
    token = _current.set(doors)
    try:
        if fence.runtime.worker is not None:  # its errors count from the first connection on
            _watch(fence.runtime.worker.engine)
        yield doors
    finally:
        _current.reset(token)
        doors.close()


@contextlib.contextmanager
def unfenced() -> t.Iterator[None]:
    """Leave the step that is being performed here, for a run that is performed inside it."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def run_in_hand() -> int | None:
    """Return the id of the run of which a step is being performed here."""
    doors = _current.get()
    return None if doors is None else doors.fence.claim.id


# What sessions tell


def _doors_for(session: Session) -> Doors | None:
    mine: Doors | None = session.info.get(DOORS)
    if mine is not None and not mine.is_closed:
        return mine
    current = _current.get()
    return current if current is not None and current.cover(session) else mine


@sa.event.listens_for(Session, "after_transaction_create")
def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None and (doors := _doors_for(session)) and not doors.is_closed:
        doors.meet(session)
        give_back(doors.runtime)


@sa.event.listens_for(Session, "after_begin")
def _after_begin(
    session: Session, transaction: SessionTransaction, connection: sa.Connection
) -> None:
    if transaction.parent is None and (doors := _doors_for(session)):
        _watch(connection.engine)
        doors.open(session, connection)


@sa.event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    doors = _doors_for(session)
    if doors is None or session.in_nested_transaction():
        return
    if doors.is_closed:
        raise ClaimLost
    # Where nothing was written the data may have changed. Inside the block of a savepoint, which
    # has ended by now, the session would not be asked for the connection that it has.
    connection = doors.connection_for(session) or connection_of(session)
    if isinstance(bind_of(doors.runtime), sa.Connection):
        session.flush()
        doors.to_commit(connection, along=False)  # in a test's transaction, which stays open


@sa.event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    doors: Doors | None = session.info.get(DOORS)
    if doors is not None and not doors.is_closed and not session.in_nested_transaction():
        doors.answered(session)


# What engines tell

_watched: weakref.WeakSet[sa.Engine] = weakref.WeakSet()


def _watch(engine: sa.Engine) -> None:
    # When the first step comes, the application has set up the listeners of its own.
    while (inner := getattr(engine, "_proxied", None)) is not None:  # with options of its own
        engine = inner
    if engine not in _watched:
        _watched.add(engine)
        for name, listener in _LISTENERS.items():
            sa.event.listen(engine, name, listener)


def _at_begin(connection: sa.Connection) -> None:
    # Of a connection that was committed past its session, and is used again.
    doors = doors_of.get(connection)
    if doors is not None and doors.leads_to_runs(connection):
        doors.guard(connection)


def _at_commit(connection: sa.Connection, *, along: bool = True) -> None:
    doors = doors_of.get(connection)
    if doors is None:
        return
    try:
        if doors.leads_to_runs(connection):
            doors.to_commit(connection, along=along)
        else:
            doors.to_commit_elsewhere()
    except BaseException:
        if not is_twophase(connection):
            _roll_back(connection)
        raise


def _roll_back(connection: sa.Connection) -> None:
    # SQLAlchemy takes a transaction whose COMMIT was refused for one that has ended: it would give
    # the connection back to the pool as it is, and whoever takes it next would commit the rest.
    try:
        connection.dialect.do_rollback(connection.connection)
    except Exception:
        connection.invalidate()


def _at_prepare(connection: sa.Connection, xid: t.Any) -> None:
    _at_commit(connection, along=False)


def _at_commit_twophase(connection: sa.Connection, xid: t.Any, is_prepared: bool) -> None:
    if not is_prepared:
        _at_commit(connection, along=False)


def _at_statement(connection: sa.Connection, cursor: t.Any, statement: str, *_: t.Any) -> None:
    doors = doors_of.get(connection)
    if doors is not None:
        doors.sent(connection, statement)


def _at_error(context: sa.engine.ExceptionContext) -> None:
    error, connection = context.sqlalchemy_exception, context.connection
    doors = None if connection is None else doors_of.get(connection)
    if error is not None and (connection is None or doors is not None):
        mark_own(error)
        if doors is not None:
            doors.fence.asked_to_repeat |= is_free(error)


_LISTENERS: dict[str, t.Callable[..., None]] = {
    "begin": _at_begin,
    "commit": _at_commit,
    "prepare_twophase": _at_prepare,
    "commit_twophase": _at_commit_twophase,
    "before_cursor_execute": _at_statement,
    "handle_error": _at_error,
}
"""What is listened to on the engines that steps use, and on no others."""
