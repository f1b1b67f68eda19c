"""Whether anybody is there who takes what waits: what a person is told where nobody is."""

from __future__ import annotations

import shlex
import typing as t

from ..rows.reads import Living

START = "flask sequence worker"
"""The command that starts a worker."""


def no_consumer(workers: t.Collection[Living], queue: str, default: str) -> str | None:
    """Say that no living worker consumes a queue, and what to do; None: one does, perhaps.

    :param workers: The workers that count as alive.
    :param queue: The name of the queue.
    :param default: The name of the queue that a worker consumes without being told so.
    """
    consuming = [each for each in workers if each.queues is None or each.queues]
    if any(each.queues is None or queue in each.queues for each in consuming):
        return None
    option = "" if queue == default else f" -Q {shlex.quote(queue)}"
    if consuming:
        return f"No running worker consumes the queue {queue!r}: start one by '{START}{option}'."
    return f"No worker is running: start one by '{START}{option}'."
