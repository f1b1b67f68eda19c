"""No child is forked while the keeper talks to a server: it would inherit half a conversation."""

from __future__ import annotations

import os
import threading

FORK_SECONDS = 5.0
"""How long a fork waits for the keeper; its calls are bounded, unless a server stands still."""


class NoFork:
    """A lock that each fork of this process takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forking = threading.local()
        if hasattr(os, "register_at_fork"):
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


no_fork: NoFork = NoFork()
