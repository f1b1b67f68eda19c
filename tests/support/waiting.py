"""Waiting for a condition, the only sleep in the tests; and for the end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import typing as t

ResultT = t.TypeVar("ResultT")


def wait_until(
    condition: t.Callable[[], ResultT],
    timeout: float = 10.0,
    *,
    interval: float = 0.05,
    message: str | t.Callable[[], str] = "",
) -> ResultT:
    """Ask again and again until the answer is true, and give that answer.

    :param condition: What to ask.
    :param timeout: The most seconds to wait.
    :param interval: Seconds between two questions.
    :param message: What to say when it did not come true, or a function that makes it.
    :raises AssertionError: If it did not come true in time.
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not true after {timeout} s (last: {answer!r}). {text}")
        time.sleep(interval)
    return answer


@contextlib.contextmanager
def meanwhile(act: t.Callable[[], object], *, interval: float) -> t.Iterator[None]:
    """Do something again and again beside the block, in a thread.

    :param act: What to do.
    :param interval: Seconds between two times.
    """
    stopped = threading.Event()

    def repeat() -> None:
        while not stopped.wait(interval):
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def end_well_at_sigterm() -> None:
    """Let SIGTERM end this program as an exception would: what it has started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
