"""What is done while a worker is shut down, and at its end."""

from __future__ import annotations

import functools

from ...rows import reads, upkeep
from ..children import let_unheard_end
from ..post import Post
from .recovery import Freeing


class LetChildrenEnd:
    """Lets the children of a pool end in a warm shutdown, once their results were read."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def __call__(self) -> None:
        """Look whether it is time."""
        if self._post.runtime.is_stopping:
            let_unheard_end(self._post.pool)


def leave(post: Post) -> None:
    """Free all that this worker holds, and count it as gone: it is shut down."""
    freeing = Freeing(post, "the worker was shut down")
    read = functools.partial(reads.held_by, worker_id=post.worker_id)
    try:
        while not (freeing.go_on(read) or freeing.is_through):
            pass
    finally:
        with post.connect() as connection:
            upkeep.remove_worker(connection, post.worker_id)
