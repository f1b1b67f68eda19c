"""What a small storm leaves, with nothing wrong in it, for the tests of its judges."""

from __future__ import annotations

import collections
import itertools

from tests.storm.checker import PLACES, STEPS, Effect, Ending, Ledger, Paper, expected_values

MARKERS = ("0-1", "0-2", "1-1")


def good_ledger() -> Ledger:
    """Return the ledger of three runs, one of whose steps was begun twice, and of a stranger."""
    effects = [
        Effect(marker, step, index, expected_values(marker)[step, index])
        for (step, index), marker in itertools.product(PLACES, MARKERS)
    ]
    endings = {
        marker: Ending(expected_values(marker)[PLACES[-1]], 10.0 + number)
        for number, marker in enumerate(MARKERS)
    }
    steps = itertools.product(MARKERS, range(1, STEPS + 1))
    attempts = collections.Counter(steps)
    attempts["0-1", 2] += 1
    papers = [Paper(effect.marker, effect.step, effect.loop, effect.marker) for effect in effects]
    papers += [Paper(marker, 0, 0, marker) for marker in MARKERS]
    papers += [Paper("s-1-0", 0, 0, "0-1"), Paper("o-1-0", 0, 0, None), Paper("p-7", 0, 0, None)]
    return Ledger(
        set(MARKERS),
        effects,
        list(MARKERS),
        endings,
        attempts,
        papers=papers,
        strangers={"s-1-0", "o-1-0"},
        past={"p-7"},
    )
