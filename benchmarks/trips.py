"""How often a step, a start and a claim wait for a database that is 20 ms away."""

from __future__ import annotations

import argparse
import dataclasses
import time
import typing as t

from benchmarks.contender import Contender, Place, Show, new_place
from benchmarks.ours import Beginning, FlaskSequence
from benchmarks.race import CONTENDERS
from benchmarks.report import OURS, Figure
from tests.support.relay import Relay
from tests.support.waiting import wait_until

LENGTHS = (10, 100)
STARTS = 10
QUIET: dict[str, t.Any] = {
    "SEQUENCE_BURST_SECONDS": 600.0,
    "SEQUENCE_SWEEP_SECONDS": None,
    "SEQUENCE_LEASE_SECONDS": 600.0,
}
"""One burst for a run, and hardly anything by the keeper beside it."""


def measure_trips(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """Round trips to a server 20 ms away: of a step, a start and a claim."""
    kinds = [kind for name, kind in CONTENDERS.items() if name in options.peers]
    kinds = [kind for kind in kinds if options.database in kind.needs and kind.commands is not None]
    for repeat in range(options.repeats):
        for rows in (False, True):
            for kind in kinds:
                if "rows" not in kind.scenarios and rows:
                    continue
                show(f"repeat {repeat + 1}: {kind.name}, {'row' if rows else 'empty'} steps")
                yield from _measure(options, kind, rows, show)


def _measure(
    options: argparse.Namespace, kind: type[Contender], rows: bool, show: Show
) -> t.Iterator[Figure]:
    made = new_place(
        options.database, options.broker, processes=1, rows=rows, pool=options.pool, settings=QUIET
    )
    with made as place, Relay.to(place.database) as relay:
        distant = dataclasses.replace(place, database=relay.url(place.database))
        contender = kind(distant)
        contender.prepare()
        setting = f"{options.database}, 20 ms away"
        if not rows:
            yield Figure("trips", f"a start, {setting}", kind.name, _of_start(contender, relay), "")
