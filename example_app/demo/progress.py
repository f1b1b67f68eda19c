"""The demo's display: a live line on a terminal, else a few plain ones."""

from __future__ import annotations

import shutil
import sys
import time
import typing as t

STEPS = ("saved", "assigned", "notified", "receipts")
BAR = 8
PLAIN_SECONDS = 3.0


class Progress:
    """Shows how many messages have come how far.

    :param total: How many there will be.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.share = 0.0
        """How many of all steps are done, from 0 to 1."""
        self._began = time.monotonic()
        self._printed = -PLAIN_SECONDS
        self._last = ""
        self._live = sys.stdout.isatty()

    def show(self, posted: int, messages: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        """Show where things stand.

        :param posted: How many were posted.
        :param messages: What the inbox shows.
        """
        done = [sum(message["steps_done"] > at for message in messages) for at in range(len(STEPS))]
        self.share = sum(done) / (self.total * len(STEPS))
        filled = round(self.share * BAR)
        counts = ", ".join(f"{step} {count:>2}" for step, count in zip(STEPS, done, strict=True))
        self._last = f"{'█' * filled}{'░' * (BAR - filled)}  posted {posted:>2}, {counts}"
        seconds = time.monotonic() - self._began
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'  {self._last}  {seconds:4.1f} s'[:width]}", end="", flush=True)
        elif seconds - self._printed >= PLAIN_SECONDS:
            self._printed = seconds
            print(f"  {self._last}", flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own.

        :param text: The line.
        """
        print(f"{chr(10) if self._live else ''}  {text}", flush=True)

    def end(self) -> None:
        """Leave the last state standing."""
        print("" if self._live else f"  {self._last}", flush=True)
