"""What the duties of a keeper work with: its worker, the database and the broker, with bounds."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
import typing as t

from ..broker.publisher import publisher_of
from ..engine.connections import bind_of
from ..engine.contexts import own_context
from ..rows.own_connections import OwnConnections, TimeIsUp
from .forking import no_fork

if t.TYPE_CHECKING:
    import sqlalchemy as sa

    from ..runtime import Nudge, Runtime

logger: logging.Logger = logging.getLogger("flask_sequence")

MOST_TOLD = 10_000
"""How many things are remembered that were told already."""


class NoConnectionError(Exception):
    """The database takes no connection."""


class Post:
    """What the keeper of one worker has at hand.

    :param runtime: The application's runtime.
    :param consumer: Celery's consumer, which is ready.
    """

    def __init__(self, runtime: Runtime, consumer: t.Any) -> None:
        self.runtime = runtime
        self.consumer = consumer
        self.slots: int = max(consumer.controller.concurrency or 1, 1)
        self.rows: int = 0
        """The most rows that the pass of a duty may read, and as many again that it may change."""
        self._known_queues: dict[str, t.Any] = {}
        self._connections: OwnConnections | None = None
        self._told: collections.OrderedDict[t.Hashable, None] = collections.OrderedDict()
        self._seconds = 0.0
        self._until: float | None = None
        self._broker_fails = False

    def begin(self, *, seconds: float, rows: int) -> None:
        """Begin the pass of a duty.

        :param seconds: How long it may take once it is connected; a statement takes half at most.
        :param rows: How many rows it may read.
        """
        self.rows, self._seconds, self._until = rows, seconds, None
        self._broker_fails = False

    @property
    def has_time(self) -> bool:
        """Whether a transaction may still begin in this pass: there is time for a statement."""
        return self._until is None or self._until - time.monotonic() >= self.statement_seconds

    @property
    def statement_seconds(self) -> float:
        """How long one statement may take."""
        return self._seconds / 2

    @property
    def pool(self) -> t.Any:
        """Celery's pool."""
        return self.consumer.pool

    @property
    def worker_id(self) -> str:
        """The id of the worker."""
        assert self.runtime.worker_id is not None
        return self.runtime.worker_id

    @property
    def queues(self) -> dict[str, t.Any]:
        """The queues that this worker consumes now, by name; kombu's."""
        # Not amqp.queues: to those, each queue is added that this process publishes to.
        consuming = self.consumer.task_consumer
        if consuming is not None:  # while it reconnects
            self._known_queues = {queue.name: queue for queue in list(consuming.queues)}
        return self._known_queues

    # The database

    @contextlib.contextmanager
    def connect(self) -> t.Iterator[sa.Connection]:
        """Open a transaction, in an app context: the application may listen to its engine.

        :raises NoConnectionError: If the database takes no connection.
        :raises TimeIsUp: If this pass has had its time; in the middle of the transaction, too.
        """
        if self._until is not None and time.monotonic() > self._until:
            raise TimeIsUp("its time was up")
        with own_context(self.runtime), no_fork, self._transaction() as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self) -> t.Iterator[sa.Connection]:
        if self._connections is None:
            self._connections = OwnConnections(t.cast("sa.Engine", bind_of(self.runtime)))
        try:
            self._connections.open()
        except Exception as error:
            raise NoConnectionError(error) from error
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        bounds = {"statement": self.statement_seconds, "until": self._until}
        with self._connections.transaction(**bounds) as connection:
            yield connection

    def disconnect(self) -> None:
        """Close the connection that is kept from transaction to transaction."""
        if self._connections is None:
            return
        try:
            with own_context(self.runtime), no_fork:
                self._connections.close()
        except Exception:
            logger.debug("The keeper's connection was not closed in order", exc_info=True)

    # The broker

    def depth(self) -> int:
        """Count the messages that wait in the queues of this worker.

        :raises Exception: What the transport raises.
        """
        queues = self.queues.values()
        with no_fork:
            return publisher_of(self.runtime).depth(queues)

    def publish(self, nudges: t.Sequence[Nudge]) -> None:
        """Send nudges; once the broker has failed in a pass, the next one does it again."""
        if nudges and not self._broker_fails:
            with no_fork:
                sent = publisher_of(self.runtime).publish(nudges, rest=False)
            self._broker_fails = sent < len(nudges)

    # The log

    def is_new(self, what: t.Hashable) -> bool:
        """Tell whether something is told for the first time, and remember it."""
        is_new = what not in self._told
        self._told[what] = None
        self._told.move_to_end(what)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        return is_new
