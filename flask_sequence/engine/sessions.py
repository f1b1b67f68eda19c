"""The session at hand, its connection, and short transactions beside it."""

from __future__ import annotations

import contextlib
import logging
import time
import typing as t

import sqlalchemy as sa
from flask import has_app_context
from sqlalchemy.orm import object_session

from ..rows.dialects import (
    is_memory,
    refuse_autocommit,
    short_transaction,
    single_statements,
)
from ..rows.listeners import meet
from ..rows.liveness import note_use
from ..rows.models import SequenceRun
from ..rows.statements import UPDATE_BY_ID
from ..runtime import Runtime

logger: logging.Logger = logging.getLogger("flask_sequence")

KEPT_SECONDS = 1.0
"""How long a kept connection may lie unused: after that the pool is asked, which may check it."""


_WRITES: dict[str, t.Any] = {"mapper": SequenceRun.__mapper__, "clause": UPDATE_BY_ID}
"""How a session is asked for its bind: it may send what only reads to a replica."""


def connection_of(session: t.Any) -> sa.Connection:
    """Give the connection with which a session writes runs.

    :raises SetupError: If it commits by itself.
    """
    connection: sa.Connection = session.connection(bind_arguments=_WRITES)
    meet(connection.engine)
    refuse_autocommit(connection)
    return connection


def bind_of(runtime: Runtime) -> sa.Engine | sa.Connection:
    """Give the engine to which runs are written.

    In a test that wraps itself in a transaction, its connection.
    """
    bind: sa.Engine | sa.Connection = runtime.db.session().get_bind(**_WRITES)
    meet(bind.engine)
    return bind


def own_transaction(runtime: Runtime) -> t.ContextManager[sa.Connection]:
    """Run a short transaction beside ``db.session``."""
    return short_transaction(_fresh_bind(runtime))


def own_move(runtime: Runtime) -> t.ContextManager[sa.Connection]:
    """Make a move of a held run beside ``db.session``: on PostgreSQL it is one statement."""
    bind = _fresh_bind(runtime)
    return _single(runtime, bind) if bind.dialect.name == "postgresql" else short_transaction(bind)


def own_statements(runtime: Runtime) -> t.ContextManager[sa.Connection]:
    """Run statements beside ``db.session`` that need no transaction."""
    return _single(runtime, _fresh_bind(runtime))


def _single(runtime: Runtime, bind: sa.Engine | sa.Connection) -> t.ContextManager[sa.Connection]:
    kept: KeptConnection | None = runtime.kept
    return single_statements(bind) if kept is None else kept.statements()


def give_back(runtime: Runtime) -> None:
    """Let the pool have the connection that this process keeps, if it does."""
    if runtime.kept is not None:
        runtime.kept.give_back()


class KeptConnection:
    """A connection for single statements that is kept from step to step.

    To take one from the pool, and to give it back, is a third of the work that a small step takes
    here. It is for a process that performs one step at a time, and goes back before ``db.session``
    needs one.

    :param engine: The engine of the runs, to PostgreSQL.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._used_at = 0.0

    @contextlib.contextmanager
    def statements(self) -> t.Iterator[sa.Connection]:
        """Run statements, each of which sees, and commits, for itself."""
        if time.monotonic() - self._used_at > KEPT_SECONDS:
            self.give_back()
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                refuse_autocommit(self._connection)
                self._connection.execution_options(isolation_level="AUTOCOMMIT")
            with self._connection.begin():
                yield self._connection
        except BaseException:
            self.give_back()
            raise
        self._used_at = time.monotonic()

    def give_back(self) -> None:
        """Let the pool have it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            note_use(connection, self._used_at)
            connection.close()


def _fresh_bind(runtime: Runtime) -> sa.Engine | sa.Connection:
    if runtime.engine is not None:
        return runtime.engine
    bind = None
    try:
        with own_context(runtime):
            bind = bind_of(runtime)
    except Exception:
        if bind is None:
            raise
        logger.debug("An error in the application's teardown", exc_info=True)
    return bind


@contextlib.contextmanager
def own_context(runtime: Runtime) -> t.Iterator[None]:
    """Push an app context of its own, and leave no session behind, whatever its teardown does."""
    context = runtime.app.app_context()
    try:
        with context:
            yield
    except BaseException:
        # A teardown function that raises keeps those before it from being called.
        with contextlib.suppress(Exception), context:
            runtime.db.session.remove()
        raise


@contextlib.contextmanager
def fresh_read(runtime: Runtime) -> t.Iterator[sa.Connection]:
    """Read what is committed by now, and take no lock."""
    bind = bind_of(runtime)
    if isinstance(bind, sa.Connection):
        yield bind
    elif is_memory(bind):
        # All share one connection there: to end a transaction on it would end the session's.
        yield connection_of(runtime.db.session())
    else:
        with single_statements(bind) as connection:
            yield connection


@contextlib.contextmanager
def set_aside(runtime: Runtime) -> t.Iterator[None]:
    """Keep the session at hand away from those of steps that are performed here meanwhile.

    A ``db.session`` that goes by the thread, as fixtures make it, would be removed with each
    step's app context. What it has loaded is read afresh later.
    """
    registry = runtime.db.session.registry
    mine = registry() if has_app_context() and registry.has() else None
    if mine is None:
        yield
        return
    registry.clear()
    try:
        yield
    finally:
        registry.set(mine)
        for row in mine:
            if not mine.is_modified(row):
                mine.expire(row)


def identity_of(run: SequenceRun) -> int | None:
    """Give the id of a run, also where its attributes are expired and its session is gone."""
    identity = sa.inspect(run).identity
    return identity[0] if identity else run.id


def expire(run: SequenceRun) -> None:
    """Let a run be read again by whichever session it is in, if it is in one."""
    session = object_session(run)
    if session is not None and sa.inspect(run).persistent:
        session.expire(run)
