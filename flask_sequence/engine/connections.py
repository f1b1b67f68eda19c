"""Which connection a statement takes.

=====================================  =================  ========================================
Statement                              Taken from         Why
=====================================  =================  ========================================
start, retry, cancel, keyed start      ``connection_of``  part of the caller's transaction
a step's writes, and its move          ``connection_of``  one commit, through the fence
claim, and looks at a run              ``own_statements`` each commits for itself; no round trip
                                                          for BEGIN and COMMIT
the move of a step that wrote nothing, ``own_move``       the same on PostgreSQL, where a move is
of a failure, of handing back                             one statement; else a short transaction
deletion of an ended run, a stand-in's ``own_transaction`` several statements
row
``run.wait``, a second look for a key  ``fresh_read``     past the caller's snapshot, without locks
whatever the keeper does               its duties' own    bounded, and beside the steps
=====================================  =================  ========================================

A process of a worker that performs one step at a time keeps the connection of ``own_statements``
and ``own_move`` from step to step.
"""

from __future__ import annotations

import contextlib
import logging
import time
import typing as t

import sqlalchemy as sa

from ..rows.dialects import (
    commit_each,
    good_connection,
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
from .contexts import own_context

logger: logging.Logger = logging.getLogger("flask_sequence")

KEPT_SECONDS = 1.0
"""How long a kept connection may lie unused: after that the pool is asked, which may check it."""

_WRITES: dict[str, t.Any] = {"mapper": SequenceRun.__mapper__, "clause": UPDATE_BY_ID}
"""What a session is asked by for its bind: one that sends reads to a replica writes elsewhere."""


def connection_of(session: t.Any) -> sa.Connection:
    """Return the connection with which a session writes runs.

    :raises SetupError: If it commits by itself.
    """
    connection: sa.Connection = session.connection(bind_arguments=dict(_WRITES))
    meet(connection.engine)
    refuse_autocommit(connection)
    return connection


def bind_of(runtime: Runtime) -> sa.Engine | sa.Connection:
    """Return the engine of the runs; in a test that is one transaction, its connection."""

    bind: sa.Engine | sa.Connection = runtime.db.session().get_bind(**_WRITES)
    meet(bind.engine)
    return bind


def is_same_place(connection: sa.Connection, bind: sa.Engine | sa.Connection) -> bool:
    """Tell whether a connection leads where a bind does, whatever options either was given."""
    return connection.engine.pool is bind.engine.pool


@contextlib.contextmanager
def own_transaction(runtime: Runtime) -> t.Iterator[sa.Connection]:
    """Run a short transaction beside ``db.session``, in an app context of its own."""
    with own_context(runtime), short_transaction(_fresh_bind(runtime)) as connection:
        yield connection


def own_move(runtime: Runtime) -> t.ContextManager[sa.Connection]:
    """Make a move of a held run beside ``db.session``: on PostgreSQL it is one statement."""
    bind = _fresh_bind(runtime)
    return _single(runtime, bind) if bind.dialect.name == "postgresql" else short_transaction(bind)


def own_statements(runtime: Runtime) -> t.ContextManager[sa.Connection]:
    """Run statements beside ``db.session`` that need no transaction."""
    return _single(runtime, _fresh_bind(runtime))


def _single(runtime: Runtime, bind: sa.Engine | sa.Connection) -> t.ContextManager[sa.Connection]:
    kept = runtime.worker and runtime.worker.kept
    return kept.statements() if kept else single_statements(bind)


def give_back(runtime: Runtime) -> None:
    """Let the pool have the connection that this process keeps, if it does."""
    if runtime.worker and runtime.worker.kept:
        runtime.worker.kept.give_back()


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
                commit_each(self._connection)
            with good_connection(self._connection):
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
            gone = connection.invalidated
            driver: t.Any = None if gone else connection.connection.dbapi_connection
            try:
                connection.close()
            except Exception:
                # What was done with it stays done.
                if driver is not None:
                    driver.close()
                logger.warning("A connection was not taken back by its pool", exc_info=True)


def _fresh_bind(runtime: Runtime) -> sa.Engine | sa.Connection:
    if runtime.worker is not None:
        return runtime.worker.engine
    with own_context(runtime):
        return bind_of(runtime)


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
