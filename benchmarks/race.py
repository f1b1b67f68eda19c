"""Steps per second, beside the peers and the floor, in turn."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import typing as t

from benchmarks.chain import Chain, LateChain, LateRowChain, RowChain
from benchmarks.contender import Contender, Show, new_place
from benchmarks.floor import Floor
from benchmarks.ours import FlaskSequence, WithoutBursts
from benchmarks.plots import cost_of
from benchmarks.report import Figure

CONTENDERS: dict[str, type[Contender]] = {
    "ours": FlaskSequence,
    "no-bursts": WithoutBursts,
    "chain": Chain,
    "late": LateChain,
    "row-chain": RowChain,
    "late-row-chain": LateRowChain,
    "floor": Floor,
}
with contextlib.suppress(ImportError):
    from benchmarks.dbos_peer import Dbos

    CONTENDERS["dbos"] = Dbos
with contextlib.suppress(ImportError):
    from benchmarks.procrastinate_peer import Procrastinate

    CONTENDERS["procrastinate"] = Procrastinate

WARM_UP = 8
"""How many short runs are performed before the clock starts, so that every process is at work."""
MOST_RUNS = 2000


def race(scenario: str, options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """Measure steps that change the data ("empty"), or that insert one row each ("rows")."""
    kinds = [kind for name, kind in CONTENDERS.items() if name in options.peers]
    kinds = [k for k in kinds if options.database in k.needs and scenario in k.scenarios]
    plan = list(itertools.product(range(options.repeats), options.steps, kinds))
    costs: dict[str, dict[int, list[float]]] = {}
    for done, (repeat, steps, kind) in enumerate(plan):
        show(f"{done}/{len(plan)}, repeat {repeat + 1}: {kind.name}, {steps} steps")
        rate = measure(options, kind, scenario, steps)
        setting = f"{steps} steps per run, {options.database}"
        costs.setdefault(kind.name, {}).setdefault(steps, []).append(1000 / rate)
        yield Figure(scenario, setting, kind.name, rate, "steps/s")
    curves = {
        name: [(steps, statistics.median(each)) for steps, each in sorted(by_steps.items())]
        for name, by_steps in costs.items()
    }
    drawing = cost_of(curves, scenario, options.database)
    (options.output / f"{scenario}-cost.svg").write_text(drawing)


def measure(options: argparse.Namespace, kind: type[Contender], scenario: str, steps: int) -> float:
    """Measure one contender once, in steps per second."""
    count = min(max(options.total // steps, 2 * options.processes), MOST_RUNS)
    made = new_place(
        options.database,
        options.broker,
        processes=options.processes,
        rows=scenario == "rows",
        pool=options.pool,
    )
    with made as place, kind(place) as contender:
        contender.measure(WARM_UP, short := min(steps, 10))
        seconds = contender.measure(count, steps)
        if contender.inserts_rows:
            assert contender.rows() == WARM_UP * short + count * steps, "rows are missing"
    return count * steps / seconds
