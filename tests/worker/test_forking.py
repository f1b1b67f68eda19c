"""A fork waits for the keeper, and not without end."""

from __future__ import annotations

import threading
import time

import pytest

from flask_sequence.worker import forking


def test_a_fork_waits_for_the_keeper_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "FORK_SECONDS", 0.5)
    lock = forking.NoFork()
    held, go = threading.Event(), threading.Event()

    def talk() -> None:
        with lock:
            held.set()
            go.wait(10)

    thread = threading.Thread(target=talk)
    thread.start()
    held.wait(10)
    began = time.monotonic()
    lock._before_fork()
    assert time.monotonic() - began > 0.4
    lock._after_fork_in_parent()
    assert lock._lock.locked()  # still the keeper's
    go.set()
    thread.join()
    lock._before_fork()
    assert lock._lock.locked()
    lock._after_fork_in_parent()
    assert not lock._lock.locked()
    lock._before_fork()
    lock._after_fork_in_child()
    with lock:  # a new one
        pass
