"""The benchmarks run, and write what they measure."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from benchmarks import plots
from tests.support import services

ROOT = Path(__file__).parents[1]


ON = ("--database", "sqlite", "--broker", "embedded", "--brokers", "embedded", "--repeats", "1")


def bench(output: Path, *arguments: str) -> list[dict[str, t.Any]]:
    """Run it, and give the lines of its report."""
    command = [sys.executable, "-m", "benchmarks", *ON, *arguments, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    lines: list[dict[str, t.Any]] = json.loads((output / "bench.json").read_text())["lines"]
    assert len((output / "bench.md").read_text().splitlines()) == 2 + len(lines)
    return lines


def values_of(lines: list[dict[str, t.Any]]) -> dict[str, float]:
    """Give the median of each, by the first words of its setting."""
    return {line["setting"].rpartition(", postgresql")[0]: line["spread"][1] for line in lines}


def test_steps_per_second(tmp_path: Path) -> None:
    peers = ["--peers", "ours", "floor", "--steps", "10", "--total", "100"]
    ours, floor = bench(tmp_path, "rows", *peers)
    assert (ours["name"], floor["name"]) == ("flask-sequence", "bare connections")
    assert floor["ratios"][1] == pytest.approx(ours["spread"][1] / floor["spread"][1])
    assert "<svg" in (tmp_path / "rows-cost.svg").read_text()


def test_the_plots_of_the_docs_show_the_figures_of_the_docs() -> None:
    drawn = plots.of_docs()
    assert drawn.keys() == {path.name for path in plots.PLOTS.glob("*.svg")}
    for name, drawing in drawn.items():
        assert (plots.PLOTS / name).read_text() == drawing, "run python -m benchmarks.plots"
        assert "prefers-color-scheme: dark" in drawing


def test_the_figures_of_the_plots_are_those_of_the_tables() -> None:
    told = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    figures = json.loads((plots.PLOTS / "figures.json").read_text())
    rates = figures["steps per second, 10 steps per run"].values()
    shown = [(spread, ",.0f") for spreads in rates for spread in spreads.values()]
    for costs in figures["milliseconds per step, by run length"].values():
        shown += [(spread, ".2f") for by_steps in costs.values() for spread in by_steps.values()]
    assert len(shown) == 16 + 4 * 16
    for (low, middle, high), form in shown:
        assert f"| {middle:{form}} ({low:{form}} to {high:{form}}) |" in told


def test_bars_stand_in_order_with_the_floor_apart() -> None:
    spreads = {"slow": (1.0, 2.0, 3.0), plots.FLOOR: (9.0, 9.0, 9.0), "fast": (7.0, 8.0, 9.0)}
    drawing = plots.bars_of(spreads, plots.title_of("empty", "sqlite", "steps/s"))
    assert drawing.index(">fast<") < drawing.index(">slow<") < drawing.index(plots.FLOOR)
    drawing = plots.bars_of(spreads, plots.title_of("latency", "redis", "ms"))
    assert drawing.index(">slow<") < drawing.index(">fast<") < drawing.index(plots.FLOOR)


@pytest.mark.full
def test_what_a_worker_and_a_request_cost(tmp_path: Path) -> None:
    few = ["--samples", "3", "--seconds", "2", "--load", "2", "--warm-up", "1"]
    scenarios = {"request", "latency", "context", "idle", "memory"}
    assert {line["scenario"] for line in bench(tmp_path, *sorted(scenarios), *few)} == scenarios
    assert "<svg" in (tmp_path / "memory.svg").read_text()


@pytest.mark.full
def test_round_trips(tmp_path: Path) -> None:
    services.require(services.POSTGRESQL)
    few = ["--trip-steps", "1", "10", "--peers", "ours", "--database", "postgresql"]
    trips = values_of(bench(tmp_path, "trips", *few))
    assert set(trips) == {
        "a step, empty",
        "a step, rows",
        "a start and its commit",
        "a claim",
    }
    assert trips["a start and its commit"] == 3  # BEGIN, INSERT, COMMIT
    # One; and a look whether the connection still lives, where it has rested for some seconds.
    assert 0.5 < trips["a claim"] < 3.5
