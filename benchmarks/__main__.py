"""Measure the contenders, interleaved, and print and write what came out."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.chain import Chain, LateChain
from benchmarks.contender import Contender, new_place
from benchmarks.floor import Floor
from benchmarks.ours import LENGTHS, FlaskSequence, WithoutBursts

CONTENDERS: dict[str, type[Contender]] = {
    "ours": FlaskSequence,
    "no-bursts": WithoutBursts,
    "chain": Chain,
    "late": LateChain,
    "floor": Floor,
}
with contextlib.suppress(ImportError):
    from benchmarks.dbos_peer import Dbos

    CONTENDERS["dbos"] = Dbos
with contextlib.suppress(ImportError):
    from benchmarks.procrastinate_peer import Procrastinate

    CONTENDERS["procrastinate"] = Procrastinate

WARM_UP = 8
"""How many runs are performed before the clock starts, so that every process is at work."""


def measure(
    options: argparse.Namespace, kind: type[Contender], scenario: str, steps: int
) -> report.Figure:
    """Measure one contender once."""
    count = min(max(options.total // steps, 2 * options.processes), 2000)
    made = new_place(
        options.database,
        options.broker,
        processes=options.processes,
        rows=scenario == "rows",
        burst=options.burst,
    )
    with made as place, kind(place) as contender:
        contender.measure(WARM_UP, steps)
        seconds = contender.measure(count, steps)
        if place.rows:
            assert contender.rows() == (WARM_UP + count) * steps, "rows are missing"
    return report.Figure(scenario, steps, kind.name, count * steps / seconds)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bin/bench", description=__doc__)
    parser.add_argument(
        "--scenario", nargs="+", choices=("empty", "rows"), default=["empty", "rows"]
    )
    parser.add_argument("--steps", nargs="+", type=int, choices=LENGTHS, default=[10])
    parser.add_argument(
        "--database", choices=("postgresql", "mariadb", "sqlite"), default="postgresql"
    )
    parser.add_argument("--broker", choices=("redis", "rabbitmq", "embedded"), default="redis")
    parser.add_argument("--peers", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--total", type=int, default=3000, help="steps of one measurement, about")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--burst", type=float, help="SEQUENCE_BURST_SECONDS")
    parser.add_argument(
        "--output", type=Path, help="a folder for the JSON, the table and the plots"
    )
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = read_options()
    kinds = [kind for name, kind in CONTENDERS.items() if name in options.peers]
    kinds = [kind for kind in kinds if options.database in kind.needs]
    plan = list(itertools.product(range(options.repeats), options.scenario, options.steps, kinds))
    figures: list[report.Figure] = []
    began = time.monotonic()
    for done, (repeat, scenario, steps, kind) in enumerate(plan):
        show(
            f"{done}/{len(plan)}  {time.monotonic() - began:4.0f} s  repeat {repeat + 1}:"
            f" {kind.name}, {scenario}, {steps} steps"
        )
        figures.append(measure(options, kind, scenario, steps))
    show("")
    report.write(figures, kinds, vars(options))


def show(text: str) -> None:
    """Show where the benchmark stands: in place in a terminal, else a line each time."""
    in_place = sys.stderr.isatty()
    print(
        f"\r\x1b[K{text}" if in_place else text,
        end="" if in_place else "\n",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
