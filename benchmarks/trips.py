"""How often a step, a start and a claim wait for a database that is 20 ms away."""

from __future__ import annotations

import argparse
import dataclasses
import time
import typing as t

from benchmarks.contender import Contender, Show, new_place
from benchmarks.ours import Beginning, FlaskSequence
from benchmarks.race import CONTENDERS
from benchmarks.report import Figure
from tests.support.relay import Relay
from tests.support.waiting import wait_until

STARTS = 10
WARM_UP = 2
SETTLE_SECONDS = 1.0
"""How long after the first line of the last step its run is over."""
IDLE_SECONDS = 3.0
"""How long the round trips of workers without work are counted, which then are taken off."""
QUIET: dict[str, t.Any] = {
    "SEQUENCE_BURST_SECONDS": 600.0,
    "SEQUENCE_SWEEP_SECONDS": None,
    "SEQUENCE_LEASE_SECONDS": 600.0,
}
"""One burst for each run, and next to nothing by the keeper beside it."""


def measure_trips(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """Round trips between one process and a server 20 ms away: of a step, a start, a claim."""
    kinds = [CONTENDERS[name] for name in options.peers]
    for repeat in range(options.repeats):
        for work in ("empty", "rows"):
            for kind in kinds:
                if options.database in kind.needs and work in kind.scenarios:
                    show(f"repeat {repeat + 1}: {kind.name}, {work}")
                    yield from _measure(options, kind, work)


def _measure(options: argparse.Namespace, kind: type[Contender], work: str) -> t.Iterator[Figure]:
    made = new_place(
        options.database, options.broker, processes=1, rows=work == "rows", settings=QUIET
    )
    with made as place, Relay.to(place.database) as relay:
        contender = kind(dataclasses.replace(place, database=relay.url(place.database)))
        setting = f"{options.database}, {1000 * relay.seconds:.0f} ms away"

        def figure(what: str, value: float, unit: str = "round trips") -> Figure:
            return Figure("trips", f"{what}, {setting}", kind.name, value, unit)

        run = 0.0
        with contender:
            contender.measure(WARM_UP, max(options.trip_steps))
            seconds, step = _of_step(contender, relay, options.trip_steps)
            if work == "empty" and isinstance(contender, FlaskSequence):
                run = _of_run(contender, relay)
        yield figure(f"a step, {work}", step)
        yield figure(f"a step, {work}", 1000 * seconds, "ms")
        if work == "empty":
            yield figure("a start and its commit", start := _of_start(contender, relay))
            if run:
                yield figure("a claim", run - start - step)


def _of_step(contender: Contender, relay: Relay, lengths: t.Sequence[int]) -> tuple[float, float]:
    """Give the seconds and the round trips that each step more makes a run longer."""
    before = relay.trips
    time.sleep(IDLE_SECONDS)
    idle = (relay.trips - before) / IDLE_SECONDS
    found = []
    for steps in sorted(lengths):
        before = relay.trips
        seconds = contender.measure(1, steps)
        found.append((seconds, relay.trips - before - idle * seconds))
    more = max(lengths) - min(lengths)
    (few, its_trips), (many, trips) = found
    return (many - few) / more, (trips - its_trips) / more


def _of_run(contender: FlaskSequence, relay: Relay) -> float:
    """Count those of a run of one empty step, all that belongs to it included."""
    begun, before = len(contender.place.begun), relay.trips
    contender.start(Beginning, STARTS, number=0)
    wait_until(lambda: len(contender.place.begun) == begun + STARTS, 30)
    time.sleep(SETTLE_SECONDS)
    return (relay.trips - before) / STARTS


def _of_start(contender: Contender, relay: Relay) -> float:
    """Count those of a start: what several starts send more than one."""
    contender.begin(STARTS, 1)
    counts = []
    for count in (1, 1 + STARTS):
        before = relay.trips
        contender.begin(count, 1)
        counts.append(relay.trips - before)
    return (counts[1] - counts[0]) / STARTS
