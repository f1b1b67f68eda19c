"""Measure flask-sequence, beside its peers where there are any, and print and write the figures."""

from __future__ import annotations

import argparse
import functools
import sys
import time
import typing as t
from pathlib import Path

from benchmarks import latency, race, report, scale, trips, worker
from benchmarks.contender import Show
from benchmarks.ours import LENGTHS
from tests.support.waiting import end_well_at_sigterm

Scenario = t.Callable[[argparse.Namespace, Show], t.Iterator[report.Figure]]
SCENARIOS: dict[str, Scenario] = {
    "empty": functools.partial(race.race, "empty"),
    "rows": functools.partial(race.race, "rows"),
    "request": latency.measure_request,
    "latency": latency.measure_latency,
    "context": latency.measure_context,
    "start": scale.measure_start,
    "beside": scale.measure_beside,
    "sweep": scale.measure_sweep,
    "backlog": scale.measure_backlog,
    "purge": scale.measure_purge,
    "data": worker.measure_data,
    "idle": worker.measure_idle,
    "memory": worker.measure_memory,
    "trips": trips.measure_trips,
}
ABOUT = "\n".join(
    f"  {name:9}{(measure.__doc__ or '').splitlines()[0]}"
    for name, measure in SCENARIOS.items()
    if not isinstance(measure, functools.partial)
)
SERVERS = ("postgresql", "mariadb", "sqlite")
BROKERS = ("redis", "rabbitmq", "embedded")


def read_options(arguments: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\nscenarios:\n"
        "  empty    Steps per second, of steps that change the data.\n"
        "  rows     Steps per second, of steps that insert a row each.\n" + ABOUT,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="by default all of them")
    add("--database", choices=SERVERS, default="postgresql")
    add("--broker", choices=BROKERS, default="redis")
    add("--brokers", nargs="+", choices=BROKERS, default=BROKERS, help="of latency and idle")
    add("--peers", nargs="+", choices=tuple(race.CONTENDERS), default=tuple(race.CONTENDERS))
    add("--steps", nargs="+", type=int, choices=LENGTHS, default=[10], help="of a run")
    add("--trip-steps", nargs=2, type=int, choices=LENGTHS, default=[10, 100], help="of trips")
    add("--repeats", type=int, default=5)
    add("--total", type=int, default=3000, help="steps of one measurement, about")
    add("--processes", type=int, default=2, help="of each contender's workers")
    add("--pool", choices=("prefork", "threads"), default="prefork", help="of Celery's workers")
    add("--samples", type=int, default=50, help="of a repeat of latency")
    add("--finished", type=int, default=1_000_000, help="runs that lie in the table")
    add("--backlog", type=int, default=100_000, help="runs that wait")
    add("--started", type=int, default=1_000_000, help="runs that start_many starts")
    add("--seconds", type=float, default=60.0, help="for which purge, idle and memory look on")
    add("--load", type=float, default=20.0, help="runs per second of memory")
    add("--warm-up", type=float, default=60.0, help="seconds of load before memory looks on")
    add("--output", type=Path, default=Path("build/bench"), help="a folder")
    options = parser.parse_args(arguments)
    options.scenarios = options.scenarios or list(SCENARIOS)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario is called {unknown[0]}; there are {', '.join(SCENARIOS)}")
    return options


def main(options: argparse.Namespace) -> None:
    """Measure what the options ask for; what is there by then is written after each scenario."""
    figures: list[report.Figure] = []
    options.output.mkdir(parents=True, exist_ok=True)
    told = {
        "options": vars(options),
        "configuration": {kind.name: kind.configuration for kind in race.CONTENDERS.values()},
    }
    began = time.monotonic()
    for name in options.scenarios:
        show = functools.partial(_show, began, name)
        found: list[report.Figure] = []
        try:
            for figure in SCENARIOS[name](options, show):
                found.append(figure)
        finally:  # also of one that was stopped
            figures += found
            report.write(options.output, figures, told)
        _show(began, name, "done")
        print(f"\n{report.table_of(report.lines_of(found))}\n", flush=True)


def _show(began: float, name: str, text: str) -> None:
    """Show where the benchmark stands: in place in a terminal, else a line each time."""
    in_place = sys.stderr.isatty()
    line = f"{time.monotonic() - began:5.0f} s  {name}: {text}"
    print(f"\r\x1b[K{line}" if in_place else line, end="" if in_place else "\n", file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    end_well_at_sigterm()
    main(read_options())
