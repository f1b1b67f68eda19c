"""The keeper: keeps a Celery worker alive in the database, notices dead children, sweeps."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import typing as t

from ..broker.publisher import publisher_of
from ..broker.share import Share
from ..failures import one_line
from ..rows import reads, upkeep
from ..rows.claims import Claim
from ..rows.dialects import bound_statements, short_engine, short_transaction
from ..runtime import Nudge, Runtime
from .children import let_unheard_end, live_processes
from .sweep import due_nudges, free, mark_unknown, purge

logger: logging.Logger = logging.getLogger("flask_sequence")

LOOK_SECONDS = 0.5
"""How often the keeper looks after the children of its worker."""
HUNGRY_SECONDS = 0.1
"""How often it looks after the broker while more runs are due than nudges may wait there."""
SLOTS_AHEAD = 100
"""How many nudges may wait in the broker for each slot of this worker."""
ORPHANS_AT_ONCE = 500
FREED_AT_ONCE = 50
"""How many runs of dead processes one transaction takes up."""
WATCH_SECONDS = 5.0
"""For how long a child's last commit may still arrive after its end."""
FORK_SECONDS = 5.0
"""How long a fork waits for the keeper; its calls are bounded, unless a server stands still."""


class _IOLock:
    """Held while the keeper talks to a server: no child is forked in the middle of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forking = threading.local()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._forking.holds = self._lock.acquire(timeout=FORK_SECONDS)

    def _after_fork_in_parent(self) -> None:
        if self._forking.holds:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


_io_lock = _IOLock()


class Keeper(threading.Thread):
    """The thread in a worker's main process.

    :param runtime: The application's runtime.
    :param consumer: Celery's consumer, which is ready.
    """

    def __init__(self, runtime: Runtime, consumer: t.Any) -> None:
        super().__init__(name="flask-sequence-keeper", daemon=True)
        self.runtime = runtime
        self._pool = consumer.pool
        self._consumer = consumer
        self._known_queues: dict[str, t.Any] = {}
        self._slots = max(consumer.controller.concurrency or 1, 1)
        self._engine = keeper_engine(runtime)
        self._stopped = threading.Event()
        self._renew_at = self._sweep_at = 0.0
        self._watch_until = 0.0
        self._children: set[int] = set()
        self._hungry = self._purging = False
        self._share = Share()
        self._complained_at = 0.0

    def run(self) -> None:
        """Look after the worker until it stops."""
        look_at, pause = 0.0, LOOK_SECONDS
        while not self._stopped.wait(pause):
            try:
                if self._hungry and time.monotonic() < look_at:
                    self._refill(half_full=True)
                else:
                    look_at = time.monotonic() + LOOK_SECONDS
                    self.look()
                pause = HUNGRY_SECONDS if self._hungry else LOOK_SECONDS
            except Exception as error:
                pause = LOOK_SECONDS
                self._complain(error)

    def stop(self) -> None:
        """Stop, and leave nothing behind: what is still held is free for others."""
        self._stopped.set()
        self.join(timeout=10)
        self._hungry = False
        with contextlib.suppress(Exception), self._connected():
            self._stop_in_database()

    def _stop_in_database(self) -> None:
        with self.connect() as connection:
            claims = reads.held_by(connection, self._worker_id)
        self._free(claims, "the worker was shut down")
        with self.connect() as connection:
            upkeep.remove_worker(connection, self._worker_id)

    @property
    def _worker_id(self) -> str:
        assert self.runtime.worker_id is not None
        return self.runtime.worker_id

    @contextlib.contextmanager
    def connect(self) -> t.Iterator[t.Any]:
        """Open a short transaction on the connection of this look."""
        with _io_lock, short_transaction(self._engine) as connection:
            bound_statements(connection)
            yield connection

    @contextlib.contextmanager
    def _connected(self) -> t.Iterator[None]:
        # To connect costs more than all else that a look does: PyMySQL takes 25 ms of work for it.
        try:
            yield
        finally:
            if not self._hungry:
                with _io_lock:
                    self._engine.dispose()

    @property
    def queues(self) -> dict[str, t.Any]:
        """The queues that this worker consumes now, by name; kombu's."""
        # Not amqp.queues: to those, each queue is added that this process publishes to.
        consuming = self._consumer.task_consumer
        if consuming is not None:  # while it reconnects
            self._known_queues = {queue.name: queue for queue in list(consuming.queues)}
        return self._known_queues

    def look(self) -> None:
        """Do what is due by now."""
        with self._connected():
            self._look()

    def _look(self) -> None:
        if self.runtime.is_stopping:
            let_unheard_end(self._pool)
        now = time.monotonic()
        settings = self.runtime.settings
        if now >= self._renew_at:
            self._renew()
            self._renew_at = now + settings.lease_seconds / 3
        children = live_processes(self._pool)
        if self._children != children:  # of a child that lived shortly only the next one is seen
            self._watch_until = now + WATCH_SECONDS
            self._replace_dead()
        self._children = children
        if now < self._watch_until:
            self._free_dead()
        if settings.sweep_seconds is None:
            return
        if now >= self._sweep_at:
            self._sweep_at = now + settings.sweep_seconds
            self._sweep()
            return
        if self._hungry:
            self._refill(half_full=True)
        if self._purging:
            self._purging = purge(self.runtime, self.connect)

    def _renew(self) -> None:
        with self.connect() as connection:
            upkeep.renew_worker(
                connection,
                self._worker_id,
                host=self.runtime.host,
                pid=os.getpid(),
                lease=self.runtime.settings.lease_seconds,
            )

    def _replace_dead(self) -> None:
        # Celery's event loop is told when the child's files are closed, often a moment before it
        # can be reaped, and then looks again only after five seconds.
        hub = getattr(self._consumer, "hub", None)
        if hub is not None and self._children:
            hub.call_soon(self._pool.maintain_pool)

    def _free_dead(self) -> None:
        with self.connect() as connection:
            claims = reads.held_by(connection, self._worker_id)
        alive = live_processes(self._pool) | {os.getpid()}  # read after the claims
        dead = [claim for claim in claims if claim.pid not in alive]
        self._free(dead, "the process that performed it died")

    def _free_orphans(self) -> None:
        with self.connect() as connection:
            claims = reads.orphans(connection, ORPHANS_AT_ONCE)
        self._free(claims, "the worker that performed the step is gone")

    def _free(self, claims: t.Sequence[Claim], reason: str) -> None:
        # What is freed first is published at once; and each transaction stays short.
        for first in range(0, len(claims), FREED_AT_ONCE):
            batch = claims[first : first + FREED_AT_ONCE]
            self._publish(free(self.runtime, self.connect, batch, reason))

    def _sweep(self) -> None:
        self._free_dead()
        self._free_orphans()
        mark_unknown(self.runtime, self.connect, list(self.queues))
        self._purging = purge(self.runtime, self.connect)
        self._refill(half_full=False)

    def _refill(self, *, half_full: bool) -> None:
        most = SLOTS_AHEAD * self._slots
        queues = self.queues
        with _io_lock:
            depth = publisher_of(self.runtime).depth(queues.values())
        if depth >= (most / 2 if half_full else most):
            self._hungry = True  # that may be done long before the next sweep
            return
        with self.connect() as connection:
            waiting = reads.count_due(connection, queues=list(queues), limit=most)
        # For what waits in the broker another nudge would only be a flood.
        room = min(waiting - round(depth * self._share.current()), most - depth)
        nudges = due_nudges(self.runtime, self.connect, list(queues), room) if room > 0 else []
        self._hungry = len(nudges) == most - depth
        self._publish(nudges)

    def _publish(self, nudges: t.Sequence[Nudge]) -> None:
        if nudges:
            with _io_lock:
                publisher_of(self.runtime).publish(nudges, rest=False)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= (self.runtime.settings.sweep_seconds or 5.0):
            self._complained_at = now
            logger.warning("The keeper waits for a server: %s", one_line(error))


def keeper_engine(runtime: Runtime) -> t.Any:
    """Make the engine of the keeper: one connection, which waits for nothing long."""
    with runtime.app.app_context():
        bind = runtime.db.engines[runtime.settings.bind_key]
    config, bind_key = runtime.app.config, runtime.settings.bind_key
    chosen = config["SQLALCHEMY_ENGINE_OPTIONS"]
    if bind_key is not None:
        chosen = config["SQLALCHEMY_BINDS"][bind_key]
    own = getattr(runtime.db, "_engine_options", {})  # given to SQLAlchemy() itself
    options = {**own, **chosen} if isinstance(chosen, dict) else own
    return short_engine(bind, options.get("connect_args", {}))
