"""Ends the demo's processes when the demo itself was killed. A program of its own.

Each line of its input says that a process group was started, ``+ID``, or has ended, ``-ID``. The
input ends with the demo, and then with it what was started and has not ended.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Listen until the demo is gone."""
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
