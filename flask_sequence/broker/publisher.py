"""How nudges are sent: on a connection of its own per process, which waits for no broker long."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import typing as t
import weakref

from celery.exceptions import OperationalError, QueueNotFound
from kombu.exceptions import KombuError

from ..failures import one_line, sanitise
from ..rows.models import FORMAT
from ..runtime import TASK, Nudge, Runtime
from .embedded import warn_embedded

if t.TYPE_CHECKING:
    from celery import Celery
    from flask import Flask

logger: logging.Logger = logging.getLogger("flask_sequence")

PUBLISH_SECONDS = 1.0
"""How long one commit publishes at most, and how long a broker may take to answer."""
REST_SECONDS = 10.0
"""For how long commits do not try a broker that did not answer."""
BATCH = 100
"""How many messages travel together at most, where the transport can do that."""
_TIMEOUTS = {
    "redis": ("socket_timeout", "socket_connect_timeout"),
    "amqp": ("read_timeout", "write_timeout"),
}
"""What bounds the wait for a broker, by the kind of transport."""


class Publisher:
    """Sends the nudges of one application, one thread at a time.

    :param runtime: The application's runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.app: weakref.ref[Flask] = weakref.ref(runtime.app)
        self.celery: Celery = runtime.celery
        self._lock = threading.RLock()
        self._connection: t.Any = None
        self._producer: t.Any = None
        self._declared: set[str] = set()
        """The queues that need no more to be declared on this connection."""
        self._worked = False
        """Whether something was sent on this connection."""
        self._finalizer: weakref.finalize[..., t.Any] | None = None
        self._rests_until = 0.0
        self._out = False

    def publish(self, nudges: t.Sequence[Nudge], *, rest: bool = True) -> int:
        """Send nudges until they are sent, the time is up, or the broker fails.

        :param nudges: What to send.
        :param rest: Whether to leave a broker alone that failed just now.
        :return: How many were sent.
        """
        app = self.app()
        if app is not None:
            warn_embedded(app)
        until = time.monotonic() + PUBLISH_SECONDS
        if not self._lock.acquire(timeout=PUBLISH_SECONDS):
            return 0
        try:
            if rest and time.monotonic() < self._rests_until:
                return 0
            return self._publish(nudges, until)
        finally:
            self._lock.release()

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        """Count the messages that wait in some queues, and declare those that are gone.

        :param queues: kombu's queues.
        :raises Exception: What the transport raises.
        """
        with self._lock:
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

    def _publish(self, nudges: t.Sequence[Nudge], until: float) -> int:
        sent = 0
        try:
            size = BATCH if len(nudges) > 1 and self._sends_batches else 1
            for first in range(0, len(nudges), size):
                if time.monotonic() > until:
                    break
                sent += self._send(nudges[first : first + size], until)
        except Exception as error:
            self._give_up(error)
        return sent

    @property
    def _sends_batches(self) -> bool:
        return bool(getattr(self._open(), "supports_batch_publish", False))  # since kombu 5.7

    def _is_broken(self, error: BaseException) -> bool:
        if self._connection is None or isinstance(error, (OSError, OperationalError)):
            return True
        if isinstance(error, KombuError) and error.__cause__ is not None:
            return self._is_broken(error.__cause__)  # of a batch
        connection, known = self._connection, not isinstance(error, QueueNotFound)
        kinds = (*connection.connection_errors, *connection.channel_errors)
        return known and isinstance(error, kinds)

    def _give_up(self, error: Exception) -> None:
        self.close()
        self._rests_until = time.monotonic() + REST_SECONDS
        if not self._out:
            logger.warning(
                "The broker does not take messages (%s); runs wait for the sweep", one_line(error)
            )
        self._out = True

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
        if sent:
            self._worked, self._out = True, False
        return sent

    def _send_one(self, producer: t.Any, nudge: Nudge) -> None:
        message = {"format": FORMAT, "id": nudge.run_id, "version": nudge.version}
        task: t.Any = self.celery.tasks[TASK]
        task.apply_async(
            kwargs=message,
            argsrepr="()",
            kwargsrepr=repr(message),
            producer=producer,
            retry=False,
            declare=[] if nudge.queue in self._declared else None,  # None: its queue
            serializer=self._serializer,
            queue=nudge.queue,
            priority=self._priority(nudge.priority),
            countdown=nudge.countdown or None,
            time_limit=nudge.time_limit,
            soft_time_limit=nudge.soft_time_limit,
            shadow=sanitise(nudge.label),
            retries=int(nudge.redirected),
            add_to_parent=False,
            ignore_result=True,
        )
        if nudge.queue not in self._declared:
            queue = self.celery.amqp.queues[nudge.queue]
            self._declared |= {nudge.queue} if queue.can_cache_declaration else set()

    @property
    def _serializer(self) -> str:
        accepted = self.celery.conf.accept_content
        plain = {"json", "application/json"} & set(accepted)
        return "json" if plain else str(self.celery.conf.task_serializer)

    def _priority(self, priority: int | None) -> int | None:
        if priority is None or self._connection.transport.driver_type != "redis":
            return priority
        return 9 - priority  # Redis takes the lowest first

    def _open(self) -> t.Any:
        if self._producer is None:
            self._connection = self.celery.connection_for_write(
                connect_timeout=PUBLISH_SECONDS,
                transport_options={"max_retries": 0, **self._timeouts()},
            )
            # With the application goes its connection.
            self._finalizer = weakref.finalize(self, _collect, self._connection)
            self._finalizer.atexit = False
            self._producer = self.celery.amqp.Producer(self._connection, auto_declare=False)
            if self._connection.transport.driver_type == "redis":
                _keep_client(self._producer.channel)
        return self._producer

    def _timeouts(self) -> dict[str, t.Any]:
        driver = self.celery.connection_for_write().transport.driver_type
        return dict.fromkeys(_TIMEOUTS.get(driver, ()), PUBLISH_SECONDS)


def _keep_client(channel: t.Any) -> None:
    # For each message kombu makes a client anew, which takes a third of the time.
    if hasattr(channel, "Client"):
        channel.Client = functools.cache(channel.Client)


def _collect(connection: t.Any) -> None:
    with contextlib.suppress(Exception):
        connection.collect(socket_timeout=0.1)


_users: weakref.WeakSet[Runtime] = weakref.WeakSet()
_inherited: list[Publisher] = []


def publisher_of(runtime: Runtime) -> Publisher:
    """Give the publisher of this process for an application.

    :param runtime: The application's runtime.
    """
    if runtime.publisher is None:
        runtime.publisher = Publisher(runtime)
        _users.add(runtime)
    return t.cast(Publisher, runtime.publisher)


def _forget_publishers() -> None:
    for runtime in list(_users):
        runtime.publisher.disown()
        _inherited.append(runtime.publisher)  # kept: to be collected may close a socket, too
        runtime.publisher = None
    _users.clear()


os.register_at_fork(after_in_child=_forget_publishers)
