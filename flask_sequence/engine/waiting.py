"""Verbs of the caller's transaction wait for locks of other transactions, but not without end."""

from __future__ import annotations

import contextlib
import random
import time
import typing as t

import sqlalchemy as sa

from ..errors import BusyError
from ..rows.dialects import is_memory, is_mysql, most_connections
from ..rows.driver_errors import is_deadlock, is_lock_timeout
from ..rows.locks import bounded_lock_wait
from ..runtime import Runtime
from .connections import bind_of, connection_of, fresh_read

LOCK_SECONDS = 10.0
"""How long a call waits in all for locks of other transactions."""
LONGEST_PAUSE = 0.1
"""The most seconds between two tries, where a lock is asked for again and again."""

AnswerT = t.TypeVar("AnswerT")


def busy(what: str) -> BusyError:
    """Make the error for what somebody else has locked.

    :param what: What that is.
    """
    return BusyError(
        f"{what} is locked by another open transaction, which does not end: try again later, or"
        " roll back. Keep transactions that write or reference runs short."
    )


class LockWaits:
    """What one call waits for locks of other transactions, and how it ends.

    On MariaDB and MySQL a statement does not wait at all, but is sent again: who waits there may
    be chosen to end a deadlock, and loses all that the transaction has written.

    :param session: The session of the caller's transaction.
    :param error: What is raised when the time is up.
    """

    def __init__(self, session: t.Any, error: BusyError) -> None:
        self.connection: sa.Connection = connection_of(session)
        self._session = session
        self._error = error
        self._until = time.monotonic() + LOCK_SECONDS
        self._asks_again = is_mysql(self.connection)
        self._bound: t.Callable[[float], None] | None = None

    @property
    def left(self) -> float:
        """How many seconds there are left to wait."""
        return max(0.0, self._until - time.monotonic())

    def tighten(self) -> None:
        """Let the next statement wait no longer than there is time left."""
        if self._bound is not None and not self._asks_again:
            self._bound(self.left)

    def act(self, act: t.Callable[[], AnswerT]) -> AnswerT:
        """Act in the caller's transaction, which is as before where that fails.

        :param act: What to do; again, where a lock is asked for again.
        :raises BusyError: If the time is up.
        """
        with bounded_lock_wait(self.connection, 0 if self._asks_again else self.left) as bound:
            self._bound = bound
            try:
                return self._act(act)
            finally:
                self._bound = None

    def _act(self, act: t.Callable[[], AnswerT]) -> AnswerT:
        pause = 0.01
        while True:
            try:
                with self._undone_on_error():
                    return act()
            except sa.exc.DBAPIError as error:
                if is_deadlock(error):
                    self._lose_transaction(error)
                    raise self._error from error
                if not is_lock_timeout(error):
                    raise
                if not self._asks_again or self.left == 0:
                    raise self._error from error
            time.sleep(min(pause, self.left) * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def savepoint(self) -> t.ContextManager[None]:
        """Undo what the session has written within it where that fails; within ``act``."""
        return contextlib.nullcontext() if self._is_postgresql else self._savepoint()

    def _undone_on_error(self) -> t.ContextManager[None]:
        # On other databases a statement that fails leaves the transaction as it was.
        return self._savepoint() if self._is_postgresql else contextlib.nullcontext()

    @contextlib.contextmanager
    def _savepoint(self) -> t.Iterator[None]:
        with self._session.begin_nested():
            connection_of(self._session)  # before that the database knows nothing of it
            yield

    @property
    def _is_postgresql(self) -> bool:
        return self.connection.dialect.name == "postgresql"

    def _lose_transaction(self, error: sa.exc.DBAPIError) -> None:
        if self._asks_again:
            # The server has rolled all of it back, and would let what follows be committed alone.
            self.connection.invalidate(error)


@contextlib.contextmanager
def brief_read(runtime: Runtime, seconds: float) -> t.Iterator[sa.Connection]:
    """Read what is committed by now, and wait for others for so long at most.

    :raises BusyError: If the time is up.
    """
    until = time.monotonic() + seconds
    bind = bind_of(runtime)
    if isinstance(bind, sa.Connection) or is_memory(bind):
        with fresh_read(runtime) as connection:
            yield connection
        return
    _wait_for_pool(bind, until)
    seconds = max(0.0, until - time.monotonic())
    try:
        with bind.connect() as connection, _brief_transaction(connection, seconds):
            yield connection
    except sa.exc.DBAPIError as error:
        if is_lock_timeout(error):
            raise busy("The table of runs") from error
        raise


@contextlib.contextmanager
def _brief_transaction(connection: sa.Connection, seconds: float) -> t.Iterator[None]:
    if connection.dialect.name == "sqlite":
        # An application may let each transaction begin with a lock.
        with bounded_lock_wait(connection, seconds), connection.begin():
            yield
    else:
        # In a transaction, since it is with that that PostgreSQL forgets the bound.
        with connection.begin(), bounded_lock_wait(connection, seconds):
            yield


def _wait_for_pool(engine: sa.Engine, until: float) -> None:
    # SQLAlchemy's pool would wait for half a minute, perhaps for the caller's own connection.
    most, pool = most_connections(engine), engine.pool
    while most is not None and isinstance(pool, sa.QueuePool) and pool.checkedout() >= most:
        if time.monotonic() > until:
            raise BusyError(
                "SQLAlchemy's pool has no connection left to read runs: end the current transaction"
                " first, or give the pool more connections (SQLALCHEMY_ENGINE_OPTIONS)."
            )
        time.sleep(0.01)
