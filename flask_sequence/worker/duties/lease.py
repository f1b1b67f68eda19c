"""That a worker counts as alive, and what is kept of those that no longer do."""

from __future__ import annotations

import os

from ...engine.processes import here
from ...rows import reads, upkeep
from ..post import Post

GONE_SECONDS = 3600.0
"""After how long the row of a worker that ended without a word is removed."""


class RenewLease:
    """Counts the worker as alive until the lease is over."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def __call__(self) -> None:
        """Renew it."""
        runtime = self._post.runtime
        with self._post.connect() as connection:
            upkeep.renew_worker(
                connection,
                self._post.worker_id,
                host=runtime.host,
                pid=os.getpid(),
                lease=runtime.settings.lease_seconds,
                queues=self._post.queues,
                place=here(),
            )


class RemoveGoneWorkers:
    """Removes the rows of workers that ended without a word."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def __call__(self) -> None:
        """Remove some."""
        with self._post.connect() as connection:
            gone = reads.workers_gone_for(connection, GONE_SECONDS, self._post.rows)
        if gone:
            with self._post.connect() as connection:
                upkeep.remove_gone(connection, gone, GONE_SECONDS)
