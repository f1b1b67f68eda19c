"""Two brokers, of which one is in use, and what waits in them."""

from __future__ import annotations

import typing as t

from tests.model.faults import Point
from tests.model.processes import current_process

if t.TYPE_CHECKING:
    from flask_sequence.runtime import Nudge


class Brokers:
    """Stands in for the publishers; what a broker has taken it hands out again and again.

    :param took: Is told what was taken.
    """

    def __init__(self, took: t.Callable[[t.Sequence[Nudge]], None]) -> None:
        self._took = took
        self.clear()

    def clear(self) -> None:
        """Have two brokers that are empty."""
        self.is_failing = False
        self._active: list[Nudge] = []
        self._other: list[Nudge] = []

    @property
    def nudges(self) -> list[Nudge]:
        """What was published to the broker that is in use."""
        return self._active

    def go_over(self) -> None:
        """Use the other one: what waits in this one is out of reach until it is used again."""
        self.is_failing = False
        self._active, self._other = self._other, self._active

    def publish(self, nudges: t.Sequence[Nudge], *, rest: bool = True) -> int:
        """Take nudges, and tell how many were taken."""
        process = current_process()
        if process is not None:
            process.at(Point.PUBLISH)
        if self.is_failing:
            return 0
        self._took(nudges)
        self._active += nudges
        return len(nudges)

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        """Count what waits, as far as that is known."""
        if self.is_failing:
            raise ConnectionError("The broker is gone.")
        return 0
