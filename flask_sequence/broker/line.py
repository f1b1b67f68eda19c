"""A connection to the broker: how it is made, and what is sent and asked on it."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import typing as t
import weakref

from celery.exceptions import OperationalError, QueueNotFound
from kombu.exceptions import KombuError

from ..errors import SetupError
from ..failures import one_line, sanitise
from ..rows.liveness import keepalive_options, unanswered_options
from ..rows.models import FORMAT
from ..runtime import TASK, Nudge

if t.TYPE_CHECKING:
    from celery import Celery

logger: logging.Logger = logging.getLogger("flask_sequence")

MORE = "flask_sequence_more"
"""The header of a message by which a nudge says that more runs are due."""
BATCH = 100
"""How many messages travel together at most, where the transport can do that."""
_CONNECTS = {"redis": "socket_connect_timeout"}
_READS = {"redis": ("socket_timeout",), "amqp": ("read_timeout", "write_timeout")}
"""What bounds the wait for a broker, by the kind of transport."""


class Line:
    """The connection of a publisher; one thread at a time may use it.

    :param celery: The Celery application.
    :param seconds: How long the broker may take to answer; of several brokers, all of them to be
        connected to.
    """

    def __init__(self, celery: Celery, seconds: float) -> None:
        self._celery = celery
        self._seconds = seconds
        self._connection: t.Any = None
        self._producer: t.Any = None
        self._declared: set[str] = set()
        """The queues that need no more to be declared on this connection."""
        self._worked = False
        """Whether something was sent on this connection."""
        self._finalizer: weakref.finalize[..., t.Any] | None = None

    def send(self, nudges: t.Sequence[Nudge], until: float) -> int:
        """Send nudges until they are sent, or the time is up.

        :param nudges: What to send.
        :param until: When to stop, by the monotonic clock.
        :return: How many were sent.
        :raises Exception: What the transport raises; the connection is given up.
        """
        sent = 0
        try:
            size = BATCH if len(nudges) > 1 and self._sends_batches else 1
            for first in range(0, len(nudges), size):
                if time.monotonic() > until:
                    break
                sent += self._send(nudges[first : first + size], until)
        except Exception:
            self.close()
            raise
        return sent

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        """Count the messages that wait in some queues, and declare those that are gone.

        :param queues: kombu's queues.
        :raises Exception: What the transport raises; the connection is given up.
        """
        try:
            return sum(self._depth(queue) for queue in queues)
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Give up the connection."""
        self._connection = self._producer = None
        self._declared.clear()
        self._worked = False
        if self._finalizer is not None:
            self._finalizer()

    def disown(self) -> None:
        """Leave the connection to the process that opened it, of which this one is a child."""
        if self._finalizer is not None:
            self._finalizer.detach()

    def _depth(self, queue: t.Any) -> int:
        bound = queue.bind(self._open().channel)
        bound.declare()
        # Not passive: to Redis an empty queue is one that is not there.
        return int(bound.queue_declare().message_count)

    @property
    def _sends_batches(self) -> bool:
        return bool(getattr(self._open(), "supports_batch_publish", False))  # since kombu 5.7

    def _is_broken(self, error: BaseException) -> bool:
        if self._connection is None or isinstance(error, (OSError, OperationalError, SetupError)):
            return True
        if isinstance(error, KombuError) and error.__cause__ is not None:
            return self._is_broken(error.__cause__)  # of a batch
        connection, known = self._connection, not isinstance(error, QueueNotFound)
        kinds = (*connection.connection_errors, *connection.channel_errors)
        return known and isinstance(error, kinds)

    def _send(self, nudges: t.Sequence[Nudge], until: float) -> int:
        try:
            return self._send_once(nudges)
        except Exception:
            if not self._worked or time.monotonic() > until:
                raise
            self.close()
            return self._send_once(nudges)  # the connection was old; the broker may be well

    def _send_once(self, nudges: t.Sequence[Nudge]) -> int:
        producer, sent = self._open(), 0
        together = producer.batch() if len(nudges) > 1 else contextlib.nullcontext()
        with together:
            for nudge in nudges:
                try:
                    self._send_one(producer, nudge)
                except Exception as error:
                    if self._is_broken(error):
                        raise
                    # The message cannot be made, as for a queue that Celery may not create.
                    label = sanitise(nudge.label)
                    logger.error("%s cannot be published: %s", label, one_line(error))
                else:
                    sent += 1
        self._worked = self._worked or sent > 0
        return sent

    def _send_one(self, producer: t.Any, nudge: Nudge) -> None:
        message: dict[str, t.Any] = {"format": FORMAT, "id": nudge.run_id}
        message["version"] = nudge.version
        if nudge.mark is not None:
            message["mark"] = nudge.mark
        task: t.Any = self._celery.tasks[TASK]
        task.apply_async(
            kwargs=message,
            argsrepr="()",
            kwargsrepr=repr(message),
            producer=producer,
            retry=False,
            declare=[] if nudge.queue in self._declared else None,  # None: its queue
            serializer=self._serializer,
            queue=nudge.queue,
            # Past every exchange: a route of the application's may name another one.
            exchange="",
            routing_key=nudge.queue,
            priority=self._priority(nudge.priority),
            countdown=nudge.countdown or None,
            time_limit=nudge.time_limit,
            soft_time_limit=nudge.soft_time_limit,
            shadow=sanitise(nudge.label),
            headers={MORE: True} if nudge.more else None,
            retries=nudge.redirect,
            add_to_parent=False,
            ignore_result=True,
        )
        if nudge.queue not in self._declared:
            queue = self._celery.amqp.queues[nudge.queue]
            self._declared |= {nudge.queue} if queue.can_cache_declaration else set()

    @property
    def _serializer(self) -> str:
        accepted = self._celery.conf.accept_content
        plain = {"json", "application/json"} & set(accepted)
        return "json" if plain else str(self._celery.conf.task_serializer)

    def _priority(self, priority: int | None) -> int | None:
        if priority is None or self._connection.transport.driver_type != "redis":
            return priority
        return 9 - priority  # Redis takes the lowest first

    def _open(self) -> t.Any:
        if self._producer is None:
            self._connection = self._make_connection()
            # With the application goes its connection.
            self._finalizer = weakref.finalize(self, collect, self._connection)
            self._finalizer.atexit = False
            self._producer = self._celery.amqp.Producer(self._connection, auto_declare=False)
            if self._connection.transport.driver_type == "redis":
                _keep_client(self._producer.channel)
        return self._producer

    def _make_connection(self) -> t.Any:
        like: t.Any = self._celery.connection_for_write()
        driver, brokers = like.transport.driver_type, max(len(like.alt), 1)
        options = {**alive_options(self._celery, driver)}
        options |= dict.fromkeys(_READS.get(driver, ()), self._seconds)
        if driver in _CONNECTS:
            options[_CONNECTS[driver]] = self._seconds / brokers
        # Each broker is tried once, as the failover strategy says, and without a pause.
        options |= {"max_retries": brokers - 1, "connect_retries_timeout": self._seconds}
        return self._celery.connection_for_write(
            connect_timeout=self._seconds / brokers, transport_options=options
        )


def alive_options(celery: Celery, driver: str) -> dict[str, t.Any]:
    """Give the transport options that let a broker be missed which has gone without a word.

    :param celery: The Celery application; what its settings say stays.
    :param driver: The kind of its transport.
    """
    chosen = celery.conf.broker_transport_options
    if driver == "redis" and not {"socket_keepalive", "socket_keepalive_options"} & set(chosen):
        options = keepalive_options() | unanswered_options()
        return {"socket_keepalive": True, "socket_keepalive_options": options}
    if driver == "amqp" and "socket_settings" not in chosen:
        return {"socket_settings": keepalive_options()}  # and amqp's own TCP_USER_TIMEOUT
    return {}


def keep_alive(celery: Celery) -> None:
    """Let every connection of a worker to its broker be missed that has gone without a word.

    :param celery: The Celery application.
    """
    driver = celery.connection_for_read().transport.driver_type
    conf = celery.conf
    conf.broker_transport_options = {
        **alive_options(celery, driver),
        **conf.broker_transport_options,
    }


def _keep_client(channel: t.Any) -> None:
    # For each message kombu makes a new client, which takes a third of the time.
    if hasattr(channel, "Client"):
        channel.Client = functools.cache(channel.Client)


def collect(connection: t.Any) -> None:
    """Close a connection without waiting for the other end.

    :param connection: kombu's.
    """
    with contextlib.suppress(Exception):
        connection.collect(socket_timeout=0.1)
