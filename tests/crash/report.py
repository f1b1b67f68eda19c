"""What was tried and seen, as text and as JSON, and the progress meanwhile."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import typing as t
from pathlib import Path

Show = t.Callable[[str], None]
"""Shows how far something has got."""


@dataclasses.dataclass
class Result:
    """What came of one check at one setting."""

    check: str
    setting: str
    tried: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    """From each kill to the next attempt."""
    limit: float | None = None
    """What the 95th percentile, or for a worker every one, may be at most."""
    problems: list[str] = dataclasses.field(default_factory=list)
    took: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all was as promised."""
        return not self.problems and self.tried > 0

    def percentile(self, part: float) -> float | None:
        """Give the smallest of the seconds that so many are not above.

        :param part: From 0 to 1.
        """
        rank = max(round(part * len(self.seconds) + 0.4999) - 1, 0)
        return sorted(self.seconds)[rank] if self.seconds else None

    @property
    def figures(self) -> dict[str, t.Any]:
        """What stands in the report."""
        times = {"p50": self.percentile(0.5), "p95": self.percentile(0.95), "max": None}
        times["max"] = max(self.seconds, default=None)
        rounded = {key: None if value is None else round(value, 2) for key, value in times.items()}
        return {
            "check": self.check,
            "setting": self.setting,
            "tried": self.tried,
            **rounded,
            "limit": self.limit,
            "passed": self.passed,
            "took": round(self.took, 1),
            "problems": self.problems,
        }


def as_text(results: t.Sequence[Result]) -> str:
    """Make the report."""
    columns = ("check", "setting", "tried", "p50", "p95", "max", "limit", "passed", "took")
    rows: list[tuple[str, ...]] = [columns]
    for result in results:
        figures = result.figures
        rows.append(tuple(_cell(figures[column]) for column in columns))
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{r.check}, {r.setting}: {problem}" for r in results for problem in r.problems]
    return "\n".join(lines) + "\n"


def _cell(value: t.Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def write(folder: Path, results: t.Sequence[Result]) -> None:
    """Write ``report.txt`` and ``report.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(as_text(results))
    figures = [{**result.figures, "seconds": result.seconds} for result in results]
    (folder / "report.json").write_text(json.dumps(figures, indent=1) + "\n")


class Progress:
    """Shows on the terminal how far all has got."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Show what is going on."""
        seconds = time.monotonic() - self._began
        line = f"[{self._done}/{self._total} {seconds:5.0f} s] {text}"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{line:<110.110}", end=end, file=sys.stderr, flush=True)

    def done(self, result: Result) -> None:
        """Show what came of a check."""
        self._done += 1
        print("\x1b[2K" * sys.stderr.isatty(), end="", file=sys.stderr)
        print(as_text([result]).split("\n", 1)[1], end="", file=sys.stderr, flush=True)
