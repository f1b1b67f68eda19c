"""Runs at a step that no worker knows are set aside, and go on once one does."""

from __future__ import annotations

import collections
import itertools
import logging
import time
import typing as t

from ...definition.registry import find_sequence
from ...engine.known_steps import options_of, unknown_step
from ...rows import moves, reads
from ...rows.reads import At
from ..post import Post
from .batches import Batches

if t.TYPE_CHECKING:
    import sqlalchemy as sa

logger: logging.Logger = logging.getLogger("flask_sequence")

MOVED_AT_ONCE = 500
AGAIN_SECONDS = 0.5
"""After how long a pass is followed by another one if it did not come to the end."""
PAUSE = 10
"""How many times as long as a walk through all that is blocked the pause after it is."""


class BlockUnknown:
    """waiting -> blocked for what is due, unclaimed for two sweeps, and not known here."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._batches: Batches[At] = Batches(post, MOVED_AT_ONCE)

    def __call__(self) -> float | None:
        """Block what is unknown among the oldest."""
        overdue = 2 * (self._post.runtime.settings.sweep_seconds or 0.0)
        with self._post.connect() as connection:
            found = reads.overdue(connection, queues=list(self._post.queues), seconds=overdue)
        unknown = sorted((row for row in found if not _is_known(row)), key=_place)

        def block(connection: sa.Connection, batch: t.Sequence[At]) -> list[tuple[int, str]]:
            unlocked = set(reads.lock(connection, [row.id for row in batch]))
            told = []
            for (sequence, step), rows in itertools.groupby(batch, key=_place):
                error = unknown_step(self._post.runtime, sequence, step)
                run_ids = [row.id for row in rows if row.id in unlocked]
                count = moves.block(connection, run_ids, step=step, overdue=overdue, error=error)
                told.append((count, error))
            return told

        for told in self._batches.each(unknown, block):
            for count, error in told:
                if count:
                    what = "run is" if count == 1 else "runs are"
                    logger.warning("%s %s blocked: %s", count, what, error)
        self._batches.check()
        return AGAIN_SECONDS if self._batches.rest or self._batches.done >= reads.OLDEST else None


class UnblockKnown:
    """blocked -> waiting for what is known here: a walk through all that is blocked.

    It may be very much: a walk takes as many passes as it needs, and rests for long after.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._batches: Batches[At] = Batches(post, MOVED_AT_ONCE)
        self._walk: t.Iterator[list[At]] = iter(())
        self._began = 0.0
        self._is_done = True

    def __call__(self) -> float | None:
        """Walk on, for one pass."""
        if self._is_done:
            self._walk, self._began, self._is_done = self._pages(), time.monotonic(), False
        try:
            return self._go_on()
        except Exception:
            self._is_done = True  # what was raised has ended the walk: the next pass begins again
            raise

    def _go_on(self) -> float:
        rows = 0
        while rows < self._post.rows and self._post.has_time:
            page = next(self._walk, None)
            if page is None:
                self._is_done = True
                took = time.monotonic() - self._began
                return max(self._post.runtime.settings.sweep_seconds or 0.0, PAUSE * took)
            rows += len(page)
            self._unblock([row for row in page if _is_known(row)])
        return AGAIN_SECONDS

    def _pages(self) -> t.Iterator[list[At]]:
        sequence = self._next_blocked("")
        while sequence is not None:
            page: list[At] = []
            while find_sequence(sequence) is not None:
                after = page[-1].id if page else 0
                with self._post.connect() as connection:
                    page = reads.blocked(connection, sequence, after=after, limit=MOVED_AT_ONCE)
                yield page
                if len(page) < MOVED_AT_ONCE:
                    break
            else:
                yield []
            sequence = self._next_blocked(sequence)

    def _next_blocked(self, after: str) -> str | None:
        with self._post.connect() as connection:
            return reads.next_blocked(connection, after)

    def _unblock(self, known: list[At]) -> None:
        def unblock(connection: sa.Connection, batch: t.Sequence[At]) -> dict[tuple[str, str], int]:
            unlocked = reads.lock(connection, [row.id for row in batch])
            moves.unblock(connection, unlocked)
            return collections.Counter(_place(row) for row in batch if row.id in set(unlocked))

        for counts in self._batches.each(known, unblock):
            for (sequence, step), count in counts.items():
                what = "run" if count == 1 else "runs"
                logger.info("%s %s at step %s.%s no longer blocked", count, what, sequence, step)
        self._batches.check()


def _place(row: At) -> tuple[str, str]:
    return row.sequence, row.step


def _is_known(row: At) -> bool:
    return options_of(row.sequence, row.step) is not None
