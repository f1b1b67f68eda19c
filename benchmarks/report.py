"""What was measured, as a table, as JSON and as plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

if t.TYPE_CHECKING:
    from benchmarks.contender import Contender

OURS = "flask-sequence"


class Figure(t.NamedTuple):
    """One measurement: steps per second."""

    scenario: str
    steps: int
    name: str
    rate: float


@dataclass(frozen=True)
class Line:
    """What one contender reached in one scenario: steps per second, and ours over it."""

    scenario: str
    steps: int
    name: str
    rates: tuple[float, float, float]
    """Minimum, median, maximum."""
    ratios: tuple[float, float, float]
    """Ours over this one, repeat by repeat: minimum, median, maximum."""


def spread(values: t.Sequence[float]) -> tuple[float, float, float]:
    """Give minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def lines_of(figures: t.Sequence[Figure]) -> list[Line]:
    """Sum the repeats up."""
    rates: dict[tuple[str, int, str], list[float]] = {}
    for figure in figures:
        rates.setdefault(figure[:3], []).append(figure.rate)
    lines = []
    for (scenario, steps, name), own in rates.items():
        ours = rates.get((scenario, steps, OURS), own)
        ratios = [mine / its for mine, its in zip(ours, own, strict=False)]
        lines.append(Line(scenario, steps, name, spread(own), spread(ratios)))
    return lines


def table_of(lines: t.Sequence[Line]) -> str:
    """Make the table, in Markdown."""
    rows = ["| scenario | steps | contender | steps/s: median (min to max) | ours over it |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for line in lines:
        low, middle, high = line.rates
        least, ratio, most = line.ratios
        rows.append(
            f"| {line.scenario} | {line.steps} | {line.name} | {middle:,.0f} ({low:,.0f} to"
            f" {high:,.0f}) | {ratio:.2f} ({least:.2f} to {most:.2f}) |"
        )
    return "\n".join(rows)


def plot_of(lines: t.Sequence[Line], title: str) -> str:
    """Draw bars, with their spread, as SVG."""
    most = max(line.rates[2] for line in lines)
    height = 28 * len(lines) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}"'
        ' font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="10" y="22" font-size="15">{title}</text>',
    ]
    for number, line in enumerate(lines):
        y = 40 + 28 * number
        low, middle, high = (value / most * 440 for value in line.rates)
        colour = "#2b6cb0" if line.name.startswith(OURS) else "#a0aec0"
        parts += [
            f'<text x="215" y="{y + 14}" text-anchor="end">{line.name}</text>',
            f'<rect x="225" y="{y}" width="{middle:.1f}" height="20" fill="{colour}"/>',
            f'<path d="M{225 + low:.1f} {y + 10}H{225 + high:.1f}" stroke="#1a202c"/>',
            f'<text x="{232 + high:.1f}" y="{y + 14}">{line.rates[1]:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def write(
    figures: t.Sequence[Figure], kinds: t.Sequence[type[Contender]], options: dict[str, t.Any]
) -> None:
    """Print the table, and write everything where an output folder was named."""
    lines = lines_of(figures)
    print(table_of(lines))
    output: Path | None = options["output"]
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    found = {
        "options": {name: value for name, value in options.items() if name != "output"},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "configuration": {kind.name: kind.configuration for kind in kinds},
        "lines": [asdict(line) for line in lines],
        "figures": figures,
    }
    (output / "bench.json").write_text(json.dumps(found, indent=1))
    (output / "bench.md").write_text(table_of(lines) + "\n")
    for scenario, steps in dict.fromkeys((line.scenario, line.steps) for line in lines):
        chosen = [line for line in lines if (line.scenario, line.steps) == (scenario, steps)]
        title = f"{scenario} steps, {steps} per run, {options['database']}: steps per second"
        (output / f"{scenario}-{steps}.svg").write_text(plot_of(chosen, title))
