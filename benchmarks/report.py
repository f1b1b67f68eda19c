"""What was measured, as a table, as JSON and as plots."""

from __future__ import annotations

import datetime
import html
import json
import math
import os
import platform
import statistics
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "flask-sequence"
COLOURS = (
    *("#2b6cb0", "#63b3ed", "#c05621", "#ed8936", "#2f855a", "#68d391", "#805ad5"),
    *("#b83280", "#718096"),
)


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
    low, middle, high = (_number(value) for value in spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bars_of(lines: t.Sequence[Line], title: str) -> str:
    """Draw a bar for each line, with its spread, as SVG."""
    most = max(line.spread[2] for line in lines) or 1.0
    drawn = []
    for number, line in enumerate(lines):
        y = 40 + 28 * number
        low, middle, high = (max(value, 0.0) / most * 400 for value in line.spread)
        colour = COLOURS[0] if line.name.startswith(OURS) else "#a0aec0"
        drawn += [
            f'<text x="255" y="{y + 14}" text-anchor="end">{html.escape(line.name)}</text>',
            f'<rect x="265" y="{y}" width="{middle:.1f}" height="20" fill="{colour}"/>',
            f'<path d="M{265 + low:.1f} {y + 10}H{265 + high:.1f}" stroke="#1a202c"/>',
            f'<text x="{272 + high:.1f}" y="{y + 14}">{_number(line.spread[1])}</text>',
        ]
    return _svg(drawn, title, height=28 * len(lines) + 50)


Points = t.Mapping[str, t.Sequence[tuple[float, float]]]
"""Curves by name: x and y of each point."""


def curves_of(points: Points, title: str, *, log_x: bool = False) -> str:
    """Draw curves over a common x, as SVG.

    :param points: The curves.
    :param title: What stands above.
    :param log_x: Whether x is drawn by its logarithm.
    """
    xs = sorted({x for curve in points.values() for x, _ in curve})
    most = max((y for curve in points.values() for _, y in curve), default=1.0) or 1.0
    scale = math.log10 if log_x else float
    first, width = scale(xs[0]), (scale(xs[-1]) - scale(xs[0])) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + 460 * (scale(x) - first) / width, 320 - 280 * y / most

    drawn = ['<path d="M60 40V320H520" fill="none" stroke="#a0aec0"/>']
    drawn += [
        f'<text x="55" y="{place(xs[0], most * part)[1] + 4:.0f}" text-anchor="end">'
        f"{_number(most * part)}</text>"
        for part in (0.0, 0.5, 1.0)
    ]
    drawn += [
        f'<text x="{place(x, 0)[0]:.0f}" y="340" text-anchor="middle">{_number(x)}</text>'
        for x in (xs if len(xs) <= 6 else [xs[0], xs[-1]])
    ]
    for number, (name, curve) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in curve)
        drawn += [
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="540" y="{44 + 22 * number}" width="12" height="12" fill="{colour}"/>',
            f'<text x="558" y="{55 + 22 * number}">{html.escape(name)}</text>',
        ]
    return _svg(drawn, title, height=360)


def _svg(drawn: t.Sequence[str], title: str, *, height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="840" height="{height}"'
        ' font-family="sans-serif" font-size="13">'
    )
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    text = f'<text x="10" y="22" font-size="15">{html.escape(title)}</text>'
    return "\n".join([head, paper, text, *drawn, "</svg>", ""])


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
        bars = bars_of(chosen, f"{scenario}, {setting}: {unit}")
        (output / f"{name}.svg").write_text(bars)


_PLAIN = {ord(character): " " for character in "/,%:()"}
