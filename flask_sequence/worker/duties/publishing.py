"""What is due and held by nobody is published again, as far as the broker has room."""

from __future__ import annotations

import logging
import time
import typing as t

from ...broker.share import Share
from ...engine.known_steps import options_of
from ...failures import one_line
from ...rows import moves, reads
from ..post import Post
from .batches import Batches

if t.TYPE_CHECKING:
    import sqlalchemy as sa

    from ...runtime import Nudge

logger: logging.Logger = logging.getLogger("flask_sequence")

HUNGRY_SECONDS = 0.1
"""How soon it looks again while more runs are due than nudges may wait in the broker."""
SLOTS_AHEAD = 100
"""How many messages may wait in the broker for each slot of this worker."""
RESERVED = 10
"""How many nudges for each slot get through where other messages have taken all the room."""
PUBLISHED_AT_ONCE = 200


def is_called(post: Post) -> bool:
    """Tell whether a nudge has come that says of more runs that they are due.

    :param post: The keeper's.
    """
    worker = post.runtime.worker
    return worker is not None and worker.more_due


class PublishDue:
    """Publishes what is due, once each interval of the sweep, and when it is called.

    While it is hungry, that is while more runs are due than nudges may wait in the broker, it
    looks more often, and fills up again what is half empty.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._share = Share()
        self._batches: Batches[reads.Due] = Batches(post, PUBLISHED_AT_ONCE)
        self._sweep_at = 0.0

    def __call__(self) -> float | None:
        """Publish what there is room for."""
        runtime = self._post.runtime
        if runtime.worker is not None:
            runtime.worker.more_due = False
        now, interval = time.monotonic(), runtime.settings.sweep_seconds or 0.0
        is_sweep = now >= self._sweep_at
        if is_sweep:
            self._sweep_at = now + interval
        most, depth = SLOTS_AHEAD * self._post.slots, self._post.depth()
        if depth >= most / 2 and not is_sweep:
            return HUNGRY_SECONDS  # there may be room long before the next sweep
        room = self._room(depth, most)
        # Half an interval: what one pass published and nobody got, the next one sends again.
        found: list[reads.Due] = []
        if room > 0:
            found = self._find(room, ahead=most, quiet=interval / 2, is_alone=depth == 0)
        self._publish(found, quiet=interval / 2)
        is_full = bool(found) and len(found) == room
        return HUNGRY_SECONDS if depth >= most or is_full else None

    def _room(self, depth: int, most: int) -> int:
        """Tell how many nudges the broker may take."""
        # For what waits in the broker another nudge would only be a flood.
        ahead = round(depth * self._share.current())
        room = max(most - depth, RESERVED * self._post.slots - ahead)
        if room <= 0:
            return 0
        with self._post.connect() as connection:
            waiting = reads.count_due(connection, queues=list(self._post.queues), limit=most)
        return min(room, waiting - ahead, self._post.rows)

    def _find(self, room: int, *, ahead: int, quiet: float, is_alone: bool) -> list[reads.Due]:
        """Choose among the oldest runs that are due and known here.

        :param room: The most to choose.
        :param ahead: Of how many of the oldest the nudges may have been sent already.
        :param quiet: Seconds since the nudge of one was sent last.
        :param is_alone: Whether nothing waits in the broker, so that what was sent is lost.
        """
        for limit in (room, max(room, reads.OLDEST)):  # of the first ones all may be unknown
            with self._post.connect() as connection:
                queues, among = list(self._post.queues), ahead + limit
                rows = reads.due(connection, queues=queues, quiet=quiet, among=among, limit=limit)
            found = [row for row in rows if options_of(row.sequence, row.step) is not None]
            if not is_alone:
                found = [row for row in found if _is_long_silent(row)]
            if len(found) >= room:
                break
        return found[:room]

    def _publish(self, found: t.Sequence[reads.Due], *, quiet: float) -> None:
        def mark(connection: sa.Connection, batch: t.Sequence[reads.Due]) -> list[reads.Due]:
            locked = set(reads.lock_due(connection, [row.id for row in batch], quiet=quiet))
            moves.mark_published(connection, locked)
            return [row for row in batch if row.id in locked]

        for batch in self._batches.each(found, mark):
            self._post.publish([nudge for nudge in map(self._nudge, batch) if nudge is not None])
        for row, error in self._batches.refused:
            if self._post.is_new((row.id, row.version)):
                logger.error("Run %s cannot be published: %s", row.id, one_line(error))
        self._batches.check()

    def _nudge(self, row: reads.Due) -> Nudge | None:
        options = options_of(row.sequence, row.step)
        return None if options is None else self._post.runtime.nudge(row, options)


def _is_long_silent(row: reads.Due) -> bool:
    """Tell whether nothing was sent for half the time that a run has been due.

    Its nudge stands in a queue, as a rule, or was lost. So it is sent again, and each time
    after twice as long.
    """
    if row.published_at is None:
        return True
    return (row.now - row.published_at) * 2 >= row.now - row.due_at
