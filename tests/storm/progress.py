"""Shows how far a storm is: redrawn on a terminal, else a line every few seconds."""

from __future__ import annotations

import collections
import sys
import time
import typing as t

if t.TYPE_CHECKING:
    from tests.storm.ledger import Counts
    from tests.storm.nemesis import Fault

BAR = 40
LINE_SECONDS = 5.0
"""How often a line is written where nothing can be redrawn."""


class Progress:
    """The display.

    :param runs: How many runs there will be.
    :param stream: Where to.
    """

    def __init__(self, runs: int, stream: t.TextIO = sys.stderr) -> None:
        self.runs, self.stream = runs, stream
        self.began = time.monotonic()
        self.said = -LINE_SECONDS
        self.lines = 0

    def show(self, phase: str, counts: Counts, faults: list[Fault], answers: bool) -> None:
        """Show the state of now.

        :param phase: What is going on.
        :param counts: How far it is.
        :param faults: What has been done.
        :param answers: Whether the database answers.
        """
        elapsed = time.monotonic() - self.began
        kinds = collections.Counter(fault.kind for fault in faults)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        state = f"{counts.started} started, {counts.finished} finished, {counts.attempts} attempts"
        if not answers:
            state += "; the database does not answer"
        if self.stream.isatty():
            full = min(BAR, BAR * counts.finished // max(1, self.runs))
            bar = "█" * full + "·" * (BAR - full)
            self._redraw([f"{phase} {elapsed:5.0f} s  {bar}", f"  {state}", f"  faults: {told}"])
        elif elapsed - self.said >= LINE_SECONDS:
            self.said = elapsed
            self.stream.write(f"{phase} {elapsed:5.0f} s: {state}; faults: {told}\n")
            self.stream.flush()

    def _redraw(self, lines: list[str]) -> None:
        up = f"\x1b[{self.lines}F" if self.lines else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self.stream.flush()
        self.lines = len(lines)
