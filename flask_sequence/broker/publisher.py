"""Who sends nudges: one publisher per process and application, which waits for no broker long."""

from __future__ import annotations

import logging
import os
import threading
import time
import typing as t
import weakref

from ..failures import one_line
from ..runtime import Nudge, Runtime
from .bounded import Bounded, BusyError
from .embedded import warn_embedded
from .line import Line
from .problems import setup_problem, shown_broker

if t.TYPE_CHECKING:
    from celery import Celery
    from flask import Flask

logger: logging.Logger = logging.getLogger("flask_sequence")

PUBLISH_SECONDS = 1.0
"""How long one commit publishes at most, and how long a broker may take to answer."""
WAIT_SECONDS = 1.75
"""How long one commit, or one look of the keeper, waits for the broker, whatever that does."""
REST_SECONDS = 10.0
"""For how long commits do not try a broker that did not answer."""
STUCK_SECONDS = 30.0
"""After how long a connection on which nothing comes to an end is left to itself."""


class Publisher:
    """Sends the nudges of one application, one thread at a time.

    :param runtime: The application's runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.app: weakref.ref[Flask] = weakref.ref(runtime.app)
        self.celery: Celery = runtime.celery
        self._line = Line(self.celery, PUBLISH_SECONDS)
        self._bounded = Bounded()
        self._replacing = threading.Lock()
        self._stuck_seconds = STUCK_SECONDS
        self._rests_until = 0.0
        self._out = False

    def publish(self, nudges: t.Sequence[Nudge], *, rest: bool = True) -> int:
        """Send nudges until they are sent, the time is up, or the broker fails.

        :param nudges: What to send.
        :param rest: Whether to leave a broker alone that failed just now.
        :return: How many were sent, as far as that is known by then.
        """
        app = self.app()
        if app is not None:
            warn_embedded(app)
        began = time.monotonic()
        if rest and began < self._rests_until:
            return 0
        line, bounded = self._current()
        try:
            return bounded.call(
                began + WAIT_SECONDS,
                lambda: self._send(line, nudges, began + PUBLISH_SECONDS, rest),
            )
        except BusyError:
            pass  # who was there first gives the broker up, or has had the time
        except TimeoutError as error:
            self._give_up(line, error)
        return 0

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        """Count the messages that wait in some queues, and declare those that are gone.

        :param queues: kombu's queues.
        :raises TimeoutError: If that takes too long.
        :raises Exception: What the transport raises.
        """
        line, bounded = self._current()
        asked = tuple(queues)
        return bounded.call(time.monotonic() + WAIT_SECONDS, lambda: line.depth(asked))

    def close(self) -> None:
        """Give up the connection."""
        self._line.close()

    def disown(self) -> None:
        """Leave the connection to the process that opened it, of which this one is a child."""
        self._line.disown()

    def _current(self) -> tuple[Line, Bounded]:
        """Give what to send on; a new one, where the last one is stuck."""
        with self._replacing:
            if self._bounded.seconds > self._stuck_seconds:
                # To be closed may free who waits on it, and may hang itself.
                threading.Thread(target=self._line.close, daemon=True).start()
                self._line, self._bounded = Line(self.celery, PUBLISH_SECONDS), Bounded()
                self._stuck_seconds *= 2  # so that threads which never end stay few
            return self._line, self._bounded

    def _send(self, line: Line, nudges: t.Sequence[Nudge], until: float, rest: bool) -> int:
        now = time.monotonic()
        if now > until or (rest and now < self._rests_until):
            return 0  # others had their turn, or it failed meanwhile
        try:
            sent = line.send(nudges, until)
        except Exception as error:
            self._give_up(line, error)
            return 0
        if sent:  # however late
            self._rests_until, self._out, self._stuck_seconds = 0.0, False, STUCK_SECONDS
        return sent

    def _give_up(self, line: Line, error: Exception) -> None:
        if line is not self._line:
            return  # another one is in its place
        self._rests_until = time.monotonic() + REST_SECONDS
        if not self._out:
            self._tell(error)
        self._out = True

    def _tell(self, error: Exception) -> None:
        problem = setup_problem(self.celery, error)
        if problem is not None:
            logger.error("Runs are saved, but workers are not told of them: %s", problem)
            return
        logger.warning(
            "The broker does not take messages (%s). Nothing is lost: workers pick the runs up once"
            " they reach it again. If this persists, check its server, and broker_url in the"
            " settings of Celery, which is %s.",
            one_line(error),
            shown_broker(self.celery),
        )


_users: weakref.WeakSet[Runtime] = weakref.WeakSet()
_inherited: list[Publisher] = []


def publisher_of(runtime: Runtime) -> Publisher:
    """Give the publisher of this process for an application.

    :param runtime: The application's runtime.
    """
    publisher: Publisher | None = runtime.publisher
    if publisher is None:
        publisher = runtime.publisher = Publisher(runtime)
        _users.add(runtime)
    return publisher


def _forget_publishers() -> None:
    for runtime in list(_users):
        if runtime.publisher is None:
            continue  # another Celery application is in the place of its own
        runtime.publisher.disown()
        _inherited.append(runtime.publisher)  # kept: to be collected may close a socket, too
        runtime.publisher = None
    _users.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_publishers)
