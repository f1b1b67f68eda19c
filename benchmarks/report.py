"""What was measured, as a table, as JSON and as plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.plots import OURS, bars_of, number, title_of


class Figure(t.NamedTuple):
    """One measurement."""

    scenario: str
    setting: str
    """What it was measured with: how many steps, which broker."""
    name: str
    """Who, or what, was measured."""
    value: float
    unit: str


@dataclass(frozen=True)
class Line:
    """What the repeats of one measurement came to."""

    scenario: str
    setting: str
    name: str
    unit: str
    spread: tuple[float, float, float]
    """Minimum, median, maximum."""
    ratios: tuple[float, float, float] | None
    """Ours over this one, repeat by repeat: minimum, median, maximum; None: ours is not there."""


def lines_of(figures: t.Iterable[Figure]) -> list[Line]:
    """Sum the repeats up, in the order in which they were first measured."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for scenario, setting, name, value, unit in figures:
        values.setdefault((scenario, setting, name, unit), []).append(value)
    lines = []
    for (scenario, setting, name, unit), own in values.items():
        ours = values.get((scenario, setting, OURS, unit))
        compared = ours and [mine / its for mine, its in zip(ours, own, strict=False) if its]
        ratios = _spread(compared) if compared else None
        lines.append(Line(scenario, setting, name, unit, _spread(own), ratios))
    return lines


def _spread(values: t.Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def table_of(lines: t.Iterable[Line]) -> str:
    """Make the table, in Markdown."""
    rows = ["| scenario | setting | what | median (min to max) | unit | ours over it |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    rows += [
        f"| {line.scenario} | {line.setting} | {line.name} | {_shown(line.spread)} | {line.unit} |"
        f" {_shown(line.ratios) if line.ratios and line.name != OURS else ''} |"
        for line in lines
    ]
    return "\n".join(rows)


def _shown(spread: tuple[float, float, float]) -> str:
    low, middle, high = (number(value) for value in spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def write(output: Path, figures: t.Sequence[Figure], told: t.Mapping[str, t.Any]) -> None:
    """Write the figures as JSON, as a table and as plots.

    :param output: A folder, which is made.
    :param figures: Everything that was measured.
    :param told: What else the JSON tells: the options, how the contenders are set up.
    """
    output.mkdir(parents=True, exist_ok=True)
    lines = lines_of(figures)
    found = {
        **told,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "lines": [asdict(line) for line in lines],
        "figures": figures,
    }
    (output / "bench.json").write_text(json.dumps(found, indent=1, default=str))
    (output / "bench.md").write_text(table_of(lines) + "\n")
    for scenario, setting, unit in dict.fromkeys((x.scenario, x.setting, x.unit) for x in lines):
        chosen = [x for x in lines if (x.scenario, x.setting, x.unit) == (scenario, setting, unit)]
        name = "-".join(f"{scenario} {setting} {unit}".translate(_PLAIN).split())
        bars = bars_of({x.name: x.spread for x in chosen}, title_of(scenario, setting, unit))
        (output / f"{name}.svg").write_text(bars)


_PLAIN = {ord(character): " " for character in "/,%:()"}
