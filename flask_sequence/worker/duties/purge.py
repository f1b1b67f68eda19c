"""What ended long ago is deleted."""

from __future__ import annotations

import logging
import typing as t

from ...engine.retention import NEEDED
from ...failures import one_line
from ...rows import reads, upkeep
from ...rows.driver_errors import is_integrity_error
from ..post import Post
from .batches import Batches

if t.TYPE_CHECKING:
    import datetime

    import sqlalchemy as sa

logger: logging.Logger = logging.getLogger("flask_sequence")

PURGED_AT_ONCE = 500
"""The most runs that one transaction deletes."""
PURGED_AT_FIRST = 16
"""How many the first one deletes: a foreign key without an index makes each one slow."""
HISTORY_AT_ONCE = 2_000
"""How many rows of the history one transaction deletes."""
AGAIN_SECONDS = 0.5
"""After how long a pass is followed by another one if there is more."""
LONGEST_PAUSE = 600.0
"""The most seconds between two passes that deleted nothing."""

End = tuple["datetime.datetime", int]
"""When a run ended, and its id."""


class Purge:
    """Deletes what ended longer ago than ``SEQUENCE_RETENTION``, the oldest first.

    It walks from the oldest on, in as many passes as it needs. What cannot be deleted is told
    once and passed over, until the next walk.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._batches: Batches[End] = Batches(
            post, PURGED_AT_ONCE, PURGED_AT_FIRST, rescue=self._empty
        )
        self._after: End | None = None
        self._pause = 0.0

    def __call__(self) -> float | None:
        """Delete for one pass."""
        retention = self._post.runtime.settings.retention_seconds
        if retention is None:
            return None
        rows, changed, is_through = self._post.rows, 0, False
        refused: list[tuple[End, Exception]] = []
        while rows > 0 and self._post.has_time:
            limit = min(rows, PURGED_AT_ONCE)
            with self._post.connect() as connection:
                page = reads.ended_before(connection, retention, after=self._after, limit=limit)
            rows -= limit
            self._delete_page(page)
            changed += self._batches.done
            refused += self._batches.refused
            if self._batches.rest:
                break
            if len(page) < limit:
                self._after, is_through = None, True
                break
        self._tell(refused)
        return self._next(is_through, changed, bool(refused))

    def _delete_page(self, page: t.Sequence[End]) -> None:
        self._trim([run_id for _, run_id in page])
        for _ in self._batches.each(page, self._delete):
            pass
        passed = len(page) - len(self._batches.rest)
        if passed:
            self._after = page[passed - 1]

    def _trim(self, run_ids: t.Collection[int]) -> None:
        """Delete the history of runs, where it is too much to be deleted with them."""
        while self._post.has_time:
            with self._post.connect() as connection:
                told = reads.history_of(connection, run_ids, limit=HISTORY_AT_ONCE)
            if len(told) < HISTORY_AT_ONCE:
                return
            with self._post.connect() as connection:
                upkeep.delete_history(connection, told)

    def _delete(self, connection: sa.Connection, batch: t.Sequence[End]) -> None:
        upkeep.delete(connection, [run_id for _, run_id in batch])

    def _empty(self, end: End, error: Exception) -> bool:
        """Take the data from a run whose row a foreign key still needs."""
        if not is_integrity_error(error):
            return False
        run_id = end[1]
        with self._post.connect() as connection:
            upkeep.empty(connection, run_id)
        logger.warning(NEEDED, run_id)
        return True

    def _tell(self, refused: list[tuple[End, Exception]]) -> None:
        new = [(end[1], error) for end, error in refused if self._post.is_new(("purge", end[1]))]
        if new:
            run_id, error = new[0]
            logger.warning(
                "%s %s older than SEQUENCE_RETENTION and cannot be deleted, such as run %s: %s."
                " Is there a foreign key without an index, or a transaction that is still open?",
                len(new),
                "run is" if len(new) == 1 else "runs are",
                run_id,
                one_line(error),
            )

    def _next(self, is_through: bool, changed: int, is_refused: bool) -> float | None:
        interval = self._post.runtime.settings.sweep_seconds or 0.0
        if changed or not is_refused:
            self._pause = 0.0
            return None if is_through else AGAIN_SECONDS
        self._pause = min(max(2 * self._pause, interval), LONGEST_PAUSE)
        return self._pause
