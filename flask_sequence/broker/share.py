"""What part of the messages in a worker's queues are nudges."""

from __future__ import annotations

import collections

from celery.worker import state

from ..definition.registry import get_sequence, sequence_names


class Share:
    """Judges by the messages that came last to this worker.

    Its queues may hold messages of the application's own tasks, too.
    """

    def __init__(self) -> None:
        self._seen: collections.Counter[str] = collections.Counter()
        self._nudges = self._all = 0.0

    def current(self) -> float:
        """Give the share, from 0 to 1; as long as nothing has come, 1."""
        seen = collections.Counter(state.total_count)
        came, self._seen = seen - self._seen, seen
        if came:
            # Celery counts a nudge by its label, not by its task.
            self._nudges = self._nudges / 2 + sum(came[label] for label in _labels())
            self._all = self._all / 2 + came.total()
        return self._nudges / self._all if self._all else 1.0


def _labels() -> set[str]:
    definitions = map(get_sequence, sequence_names())
    return {f"{each.name}.{step.name}" for each in definitions for step in each.steps}
