"""The keeper: the thread in a Celery worker's main process that does its duties."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
import typing as t

from ..failures import one_line
from ..runtime import Runtime
from .duties import DUTIES
from .duties.duty import Duty, Work
from .duties.shutdown import leave
from .post import NoConnectionError, Post

logger: logging.Logger = logging.getLogger("flask_sequence")

KEEP_SECONDS = 0.25
"""For how long the keeper keeps its connection until the next duty is due."""
LEAVE_SECONDS = 5.0
LEAVE_ROWS = 500
"""How long it may take, at the end, to free what its worker still holds; how much at once."""
LATE_SECONDS = 1.0
"""By how much a duty may overrun its time without a word in the log."""


@dataclasses.dataclass
class _Assignment:
    """A duty of one keeper."""

    duty: Duty
    work: Work
    interval: float
    due_at: float = 0.0
    told_at: float = float("-inf")


_Trouble = dict[tuple[str, str], list[_Assignment]]
"""What went wrong, and why, and in which duties."""


class Keeper(threading.Thread):
    """The thread in a worker's main process.

    :param runtime: The application's runtime.
    :param consumer: Celery's consumer, which is ready.
    :param duties: What it does, in this order.
    """

    def __init__(
        self, runtime: Runtime, consumer: t.Any, duties: t.Sequence[Duty] = DUTIES
    ) -> None:
        super().__init__(name="flask-sequence-keeper", daemon=True)
        self.post: Post = Post(runtime, consumer)
        self._quiet_seconds = runtime.settings.sweep_seconds or 5.0
        self._told_at = float("-inf")
        """When the log was told last that the database does not answer."""
        self._stopped = threading.Event()
        self._assigned: dict[Duty, _Assignment] = {}
        for duty in duties:
            interval = duty.interval(runtime.settings)
            if interval is not None:
                self._assigned[duty] = _Assignment(duty, duty.begin(self.post), interval)
        self._urgent = [each for each in self._assigned.values() if each.duty.is_urgent]

    def run(self) -> None:
        """Do what is due, until the worker stops."""
        pause = 0.0
        while not self._stopped.wait(pause):
            try:
                pause = self.round()
            except BaseException:
                # Nobody would see that a thread has ended, and nothing be recovered any more. Code
                # of the application is called here, which may raise SystemExit, too.
                logger.exception("The keeper failed outside its duties, and continues")
                pause = self._quiet_seconds

    def stop(self) -> None:
        """Stop, and leave nothing behind: what is still held is free for others."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=10)
        with contextlib.suppress(Exception):
            self.post.begin(seconds=LEAVE_SECONDS, rows=LEAVE_ROWS)
            leave(self.post)
        self.post.disconnect()

    def round(self) -> float:
        """Do each duty that is due by now, once, in their order.

        One that fails or takes long keeps no other from its turn. All that may take long, one
        after the other, takes longer than a short lease: so an urgent one comes in between.

        :return: Seconds until the next one is due.
        """
        began = time.monotonic()
        trouble: _Trouble = collections.defaultdict(list)
        for assigned in self._assigned.values():
            for urgent in self._urgent:
                self._do_if_due(urgent, time.monotonic(), trouble)
            self._do_if_due(assigned, began, trouble)
        self._tell(trouble)
        pause = min(each.due_at for each in self._assigned.values()) - time.monotonic()
        if pause > KEEP_SECONDS:
            # To connect costs more than all else: PyMySQL takes 25 ms of work for it.
            self.post.disconnect()
        return max(pause, 0.0)

    def perform(self, duty: Duty) -> float | None:
        """Do a duty for one pass.

        :param duty: One that this keeper has.
        :return: The seconds after which it has to go on; None: its interval.
        :raises Exception: What keeps it from it.
        """
        self.post.begin(seconds=duty.seconds, rows=duty.rows)
        return self._assigned[duty].work()

    def _do_if_due(self, assigned: _Assignment, now: float, trouble: _Trouble) -> None:
        is_due = assigned.due_at <= now or assigned.duty.is_called(self.post)
        if is_due and not self._stopped.is_set():
            assigned.due_at = now + self._try(assigned, trouble)

    def _try(self, assigned: _Assignment, trouble: _Trouble) -> float:
        duty, began = assigned.duty, time.monotonic()
        wanted: float | None = None
        try:
            wanted = self.perform(duty)
        except NoConnectionError as error:
            self._tell_unanswered(error)
            wanted = duty.retry
        except BaseException as error:  # SystemExit, too, would only end the thread
            trouble["could not", one_line(error)].append(assigned)
            wanted = duty.retry
        else:
            taken = time.monotonic() - began
            if taken > duty.seconds + LATE_SECONDS:
                text = f"it took {taken:.1f} s, and should take at most {duty.seconds:g} s"
                trouble["was slow to", text].append(assigned)
        return assigned.interval if wanted is None else wanted

    def _tell_unanswered(self, error: NoConnectionError) -> None:
        now = time.monotonic()
        if now - self._told_at >= self._quiet_seconds:
            self._told_at = now
            logger.warning(
                "The database does not answer (%s): start its server, or correct"
                " SQLALCHEMY_DATABASE_URI. Until then this worker takes nothing over, and"
                " publishes nothing.",
                one_line(error.__cause__ or error),
            )

    def _tell(self, trouble: _Trouble) -> None:
        """Log what went wrong, of each duty once an interval."""
        now = time.monotonic()
        for (what, text), failed in trouble.items():
            quiet = [max(each.interval, self._quiet_seconds) for each in failed]
            new = [each for each, s in zip(failed, quiet, strict=True) if now - each.told_at >= s]
            if new:
                names = ", ".join(each.duty.name for each in new)
                logger.warning("The keeper %s %s: %s", what, names, text)
            for each in new:
                each.told_at = now
