"""Bars and curves as SVG, which read on a light and on a dark screen.

``python -m benchmarks.plots`` draws those of the docs, from the figures in docs/plots/figures.json.
"""

from __future__ import annotations

import html
import json
import math
import typing as t
from pathlib import Path

PLOTS = Path(__file__).parents[1] / "docs" / "plots"
OURS = "flask-sequence"
FLOOR = "bare connections"
COLOURS = {
    OURS: ("#0f766e", "#2dd4bf"),
    f"{OURS}, no bursts": ("#5aa9a3", "#8be0d6"),
    "Celery chain": ("#c2410c", "#fb923c"),
    "Celery chain, acks_late": ("#e08a4f", "#fcc79b"),
    "Celery chain, a row each": ("#be185d", "#f472b6"),
    "Celery chain, a row each, acks_late": ("#dd7ba6", "#f9b8d8"),
    "DBOS": ("#6d28d9", "#a78bfa"),
    "procrastinate": ("#a16207", "#eab308"),
    FLOOR: ("#64748b", "#94a3b8"),
}
"""The colour of each contender, on a light and on a dark screen: the same in every plot."""
OTHERS = (("#1d4ed8", "#60a5fa"), ("#4d7c0f", "#a3e635"), ("#475569", "#cbd5e1"))

Spread = tuple[float, float, float]
"""Minimum, median, maximum."""
Points = t.Mapping[str, t.Sequence[tuple[float, float]]]
"""Curves by name: x and y of each point."""

STYLE = """
text { fill: #1f2933 } .paper { fill: #ffffff; stroke: #d5dbe1 } .grid { stroke: #e4e9ee }
.soft { fill: #52606d } .spread { stroke: #1f2933 } .line { fill: none; stroke-width: 1.75 }
.ours { stroke-width: 3.5; font-weight: 600 } .floor { stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .paper { fill: #161b22; stroke: #30363d } .grid { stroke: #2b323b }
.soft { fill: #9aa5b1 } .spread { stroke: #e6edf3 } }
"""


def number(value: float) -> str:
    """Show a number with three digits, or with all that it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def title_of(scenario: str, setting: str, unit: str) -> str:
    """Tell in words what a plot shows.

    :param scenario: The scenario, for example ``"empty"``.
    :param setting: What it was measured with.
    :param unit: The unit of its values.
    """
    what = {"empty": "empty steps", "rows": "steps that insert a row"}.get(scenario, scenario)
    words = {"steps/s": "Steps per second", "runs/s": "Runs per second"}.get(unit, unit)
    better = "higher is better" if unit.endswith("/s") else "lower is better"
    for plain, name in (("postgresql", "PostgreSQL"), ("mariadb", "MariaDB"), ("sqlite", "SQLite")):
        setting = setting.replace(plain, name)
    return f"{words} ({what}, {setting}; {better})"


def bars_of(spreads: t.Mapping[str, Spread], title: str) -> str:
    """Draw a bar for each, the best first, with its spread; what is the floor comes last.

    :param spreads: The values by name.
    :param title: What stands above.
    """
    most = max(high for _, _, high in spreads.values()) or 1.0
    best = 1 if "lower is better" in title else -1
    order = sorted(spreads, key=lambda name: (name == FLOOR, best * spreads[name][1]))
    drawn = []
    for place, name in enumerate(order):
        y = 50 + 30 * place + 10 * (name == FLOOR)
        low, middle, high = (max(value, 0.0) / most * 400 for value in spreads[name])
        told = html.escape(name if name != FLOOR else f"floor: {FLOOR}")
        kind = "ours" if name == OURS else ""
        colour = _class(name, order)
        bar = f'fill-opacity=".15" class="{colour} fill stroke floor"'
        drawn += [
            f'<text class="{kind}" x="265" y="{y + 15}" text-anchor="end">{told}</text>',
            f'<rect x="275" y="{y}" width="{middle:.1f}" height="20" rx="2" '
            + (f"{bar}/>" if name == FLOOR else f'class="{colour} fill"/>'),
            f'<path class="spread" d="M{275 + low:.1f} {y + 10}H{275 + high:.1f}"/>',
            f'<text class="{kind}" x="{284 + max(middle, high):.1f}" y="{y + 15}">'
            f"{number(spreads[name][1])}</text>",
        ]
    return _svg(drawn, title, order, height=30 * len(order) + 75)


def curves_of(points: Points, title: str, *, x: str = "", log: bool = False) -> str:
    """Draw curves over a common x, each with its name at its end.

    :param points: The curves.
    :param title: What stands above.
    :param x: What stands below the axis.
    :param log: Whether both axes are drawn by their logarithms.
    """
    xs = sorted({at for curve in points.values() for at, _ in curve})
    ys = [y for curve in points.values() for _, y in curve]
    scale: t.Callable[[float], float] = math.log10 if log else float
    ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(max(ys))
    left, right, bottom, top = 60.0, 560.0, 420.0, 60.0

    def at_x(value: float) -> float:
        span = scale(xs[-1]) - scale(xs[0]) or 1.0
        return left + (right - left) * (scale(value) - scale(xs[0])) / span

    def at_y(value: float) -> float:
        span = scale(ticks[-1]) - scale(ticks[0])
        return bottom - (bottom - top) * (scale(value) - scale(ticks[0])) / span

    drawn = []
    for tick in ticks:
        y = at_y(tick)
        drawn += [
            f'<path class="grid" d="M{left:.0f} {y:.1f}H{right:.0f}"/>',
            f'<text class="soft" x="52" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>',
        ]
    for value in xs if len(xs) <= 6 else [xs[0], xs[-1]]:
        drawn.append(
            f'<text class="soft" x="{at_x(value):.1f}" y="440" text-anchor="middle">'
            f"{number(value)}</text>"
        )
    drawn.append(f'<text class="soft" x="310" y="462" text-anchor="middle">{html.escape(x)}</text>')
    order = list(points)
    ends = _apart({name: at_y(curve[-1][1]) for name, curve in points.items()}, 19.0, bottom)
    for name in sorted(order, key=lambda name: name == OURS):  # ours lies over the others
        line = " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in points[name])
        kind = {OURS: " ours", FLOOR: " floor"}.get(name, "")
        end, label = at_y(points[name][-1][1]), ends[name]
        colour = _class(name, order)
        told = html.escape(name if name != FLOOR else f"floor: {FLOOR}")
        drawn += [
            f'<polyline class="line stroke {colour}{kind}" points="{line}"/>',
            f'<path class="line stroke {colour}" stroke-opacity=".5" '
            f'd="M{right + 2:.0f} {end:.1f}L{right + 16:.0f} {label:.1f}"/>',
            f'<text class="{kind.strip()}" x="{right + 20:.0f}" y="{label + 4:.1f}">{told}</text>',
        ]
    return _svg(drawn, title, order, height=480)


def _ticks(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(most or 1.0))
    step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if most <= 5 * step * part)
    return [step * count for count in range(math.ceil(most / step) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [part * 10.0**power for power in powers for part in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick <= least)
    last = min(index for index, tick in enumerate(ticks) if tick >= most)
    return ticks[first : last + 1]


def _apart(places: t.Mapping[str, float], gap: float, bottom: float) -> dict[str, float]:
    """Move labels apart that would lie over one another, from the lowest one upwards."""
    moved: dict[str, float] = {}
    limit = bottom
    for name in sorted(places, key=lambda name: places[name], reverse=True):
        limit = moved[name] = min(places[name], limit)
        limit -= gap
    return moved


def _class(name: str, order: t.Sequence[str]) -> str:
    known = [*COLOURS, *(other for other in order if other not in COLOURS)]
    return f"c{known.index(name)}"


def _svg(drawn: t.Sequence[str], title: str, order: t.Sequence[str], *, height: int) -> str:
    others = [name for name in order if name not in COLOURS]
    pairs = dict(zip(others, OTHERS * len(others), strict=False))
    colours = {_class(name, order): COLOURS.get(name) or pairs[name] for name in order}
    light, dark = (
        "".join(
            f".{name}.stroke {{ stroke: {pair[shade]} }} .{name}.fill {{ fill: {pair[shade]} }}\n"
            for name, pair in colours.items()
        )
        for shade in (0, 1)
    )
    style = f"{STYLE}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 {height}" width="840" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img">',
            f"<title>{html.escape(title)}</title><style>{style}</style>",
            f'<rect class="paper" x=".5" y=".5" width="839" height="{height - 1}" rx="8"/>',
            f'<text x="20" y="30" font-size="16">{html.escape(title)}</text>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def of_docs() -> dict[str, str]:
    """Draw the plots of the docs, by the names of their files."""
    figures = json.loads((PLOTS / "figures.json").read_text("utf-8"))
    drawn = {}
    for scenario, spreads in figures["steps per second, 10 steps per run"].items():
        title = title_of(scenario, "10 steps per run, postgresql", "steps/s")
        drawn[f"{scenario}-10.svg"] = bars_of(spreads, title)
    for scenario, costs in figures["milliseconds per step, by run length"].items():
        points = {
            name: [(float(steps), spread[1]) for steps, spread in by_steps.items()]
            for name, by_steps in costs.items()
        }
        drawn[f"{scenario}-cost.svg"] = cost_of(points, scenario, "postgresql")
    return drawn


def cost_of(points: Points, scenario: str, database: str) -> str:
    """Draw what a step costs by the length of its run.

    :param points: Milliseconds by the number of steps, for each contender.
    :param scenario: The scenario.
    :param database: The database.
    """
    title = title_of(scenario, database, "Milliseconds per step, by run length")
    return curves_of(points, title, x="steps in a run", log=True)


if __name__ == "__main__":
    for name, drawing in of_docs().items():
        (PLOTS / name).write_text(drawing, "utf-8")
