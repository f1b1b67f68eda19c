"""What waits in a queue where nobody takes it: it follows its step, or is told of."""

from __future__ import annotations

import collections
import logging
import typing as t

from ...engine.consumers import no_consumer
from ...engine.known_steps import options_of
from ...rows import moves, reads
from ..post import Post
from .batches import Batches

if t.TYPE_CHECKING:
    import sqlalchemy as sa

logger: logging.Logger = logging.getLogger("flask_sequence")

MOVED_AT_ONCE = 500
MOST_QUEUES = 100
"""How many queues one pass looks at."""
AGAIN_SECONDS = 0.5
"""After how long a pass is followed by another one if it did not come to the end."""

Place = tuple[str, str]
"""Two queues: the one in which a run waits, and the one of its step."""


class FollowQueues:
    """waiting -> waiting in the queue that the code gives the step by now.

    It looks at what has been due for two sweeps, in the queues of this worker and in those that no
    living worker consumes. Of the latter it tells, once.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._batches: Batches[tuple[Place, int]] = Batches(post, MOVED_AT_ONCE)
        self._told: set[str] = set()

    def __call__(self) -> float | None:
        """Look once."""
        seconds = 2 * (self._post.runtime.settings.sweep_seconds or 0.0)
        with self._post.connect() as connection:
            workers = reads.living_workers(connection)
            waiting = reads.due_queues(connection, seconds=seconds, limit=MOST_QUEUES)
        mine = set(self._post.queues)
        default = self._post.runtime.default_queue
        alone = {
            queue: told
            for queue in waiting
            if queue not in mine and (told := no_consumer(workers, queue, default)) is not None
        }
        with self._post.connect() as connection:
            looked_at = [queue for queue in waiting if queue in mine or queue in alone]
            found = reads.overdue(connection, queues=looked_at, seconds=seconds)
        self._follow(found)
        self._tell(alone, found)
        return AGAIN_SECONDS if self._batches.rest else None

    def _follow(self, found: t.Sequence[reads.At]) -> None:
        strayed = sorted((place, row.id) for row in found if (place := self._strayed(row)))

        def follow(connection: sa.Connection, batch: t.Sequence[tuple[Place, int]]) -> None:
            unlocked = set(reads.lock(connection, [run_id for _, run_id in batch]))
            by_place = collections.defaultdict(list)
            for place, run_id in batch:
                if run_id in unlocked:
                    by_place[place].append(run_id)
            for (queue, following), run_ids in by_place.items():
                moves.follow(connection, run_ids, queue=queue, following=following)

        for _ in self._batches.each(strayed, follow):
            pass
        self._batches.check()

    def _strayed(self, row: reads.At) -> Place | None:
        options = options_of(row.sequence, row.step)
        if options is None:
            return None
        queue = self._post.runtime.queue_of(options, row.options)
        return None if queue == row.queue else (row.queue, queue)

    def _tell(self, alone: t.Mapping[str, str], found: t.Sequence[reads.At]) -> None:
        left = collections.Counter(row.queue for row in found if self._strayed(row) is None)
        self._told &= set(alone)  # so that it is told again, where it comes again
        for queue, told in alone.items():
            if left[queue] and queue not in self._told:
                self._told.add(queue)
                count = f"{left[queue]}{' or more' * (left[queue] >= reads.OLDEST)}"
                what = "run is" if left[queue] == 1 else "runs are"
                logger.warning("%s %s waiting for a worker. %s", count, what, told)
