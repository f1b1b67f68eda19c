"""What must be true after a storm: a judgement over a ledger, without a database."""

from __future__ import annotations

import collections
import functools
import typing as t
import zlib
from dataclasses import dataclass, field

STEPS = 5
LOOP, LOOPS = 3, 3
"""The step that commits in a loop, and how often."""

PLACES = tuple(
    (step, index) for step in range(1, STEPS + 1) for index in range(LOOPS if step == LOOP else 1)
)
"""Step, and turn of its loop, of every effect of a run, in order."""


def first_value(marker: str) -> int:
    """Give the value that the data of a run begin with.

    :param marker: The run.
    """
    return zlib.crc32(marker.encode())


def next_value(value: int, step: int, index: int) -> int:
    """Give the value that a step makes of the one before, so that a gap shows in all that follow.

    :param value: The value before.
    :param step: The number of the step.
    :param index: Which turn of its loop.
    """
    return zlib.crc32(f"{value} {step} {index}".encode())


@functools.cache
def expected_values(marker: str) -> dict[tuple[int, int], int]:
    """Give the value of every effect of a run.

    :param marker: The run.
    """
    values, value = {}, first_value(marker)
    for step, index in PLACES:
        value = values[step, index] = next_value(value, step, index)
    return values


class Effect(t.NamedTuple):
    """What a step left in the database."""

    marker: str
    step: int
    loop: int
    value: int


class Paper(t.NamedTuple):
    """A row that refers to a run."""

    marker: str
    """The run that it was written for; or a stranger's name for it, which begins with ``s-``, or
    with ``o-`` where its run may have been purged; or ``p-`` and the id of a run of long ago."""
    step: int
    """0: it was not written by a step."""
    loop: int
    run: str | None
    """The marker of the run that it refers to."""


class Ending(t.NamedTuple):
    """The end of a run: the value in its data, and when."""

    value: int
    at: float


@dataclass
class Ledger:
    """All that is known after a storm."""

    committed: set[str] = field(default_factory=set)
    """The starts that must have happened, by what the starters saw."""
    effects: list[Effect] = field(default_factory=list)
    """In the order in which they were written."""
    rows: list[str] = field(default_factory=list)
    """The markers of the runs in the database, whatever became of them."""
    endings: dict[str, Ending] = field(default_factory=dict)
    """Of the runs that finished."""
    attempts: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    """How often each step of each run was begun."""
    raised: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    """How often it failed on purpose."""
    papers: list[Paper] | None = None
    """The rows that refer to runs; None: there are no runs."""
    strangers: set[str] = field(default_factory=set)
    """The rows that strangers must have committed."""
    past: set[str] = field(default_factory=set)
    """The rows that refer to runs that are to be purged."""


@dataclass(frozen=True)
class Findings:
    """What is wrong, each as a list of lines that name it; all but ``recovered`` must be empty."""

    lost: list[str]
    """Committed starts that did not finish, or without an effect and a paper of each step, and
    papers of strangers that are gone."""
    doubled: list[str]
    """Effects and papers that are there more than once, and starts that made two runs."""
    out_of_order: list[str]
    """Runs with an effect before one of an earlier step."""
    unexpected: list[str]
    """Runs, effects and papers of starts, and papers of strangers, that were rolled back."""
    broken: list[str]
    """Values that are not what the steps before make them, papers that refer to another run."""
    recovered: int
    """Attempts beyond the first that no failure on purpose explains; with 0 nothing was tested."""
    papers: int = 0
    """How many rows of starts and steps refer to runs."""
    strangers: int = 0
    """How many of strangers do."""

    @property
    def faults(self) -> dict[str, list[str]]:
        """The five lists by name."""
        names = ("lost", "doubled", "out_of_order", "unexpected", "broken")
        return {name: getattr(self, name) for name in names}

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong, and something was tested."""
        return self.recovered > 0 and not any(self.faults.values())


def check(ledger: Ledger) -> Findings:
    """Judge a ledger.

    :param ledger: What is known.
    """
    places: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for effect in ledger.effects:
        places[effect.marker].append((effect.step, effect.loop))
    return Findings(
        lost=_lost(ledger, places),
        doubled=_doubled(ledger),
        out_of_order=sorted(marker for marker, seen in places.items() if seen != sorted(seen)),
        unexpected=_unexpected(ledger, places),
        broken=_broken(ledger),
        recovered=sum(
            max(0, count - 1 - ledger.raised[key]) for key, count in ledger.attempts.items()
        ),
        papers=sum(paper.marker in ledger.committed for paper in ledger.papers or ()),
        strangers=sum(paper.marker in ledger.strangers for paper in ledger.papers or ()),
    )


def _lost(ledger: Ledger, places: t.Mapping[str, list[tuple[int, int]]]) -> list[str]:
    lost = []
    for marker in sorted(ledger.committed):
        missing = [place for place in PLACES if place not in places.get(marker, ())]
        if marker not in ledger.endings or missing:
            lost.append(f"{marker}: without {missing}" if missing else f"{marker}: unfinished")
    return lost + _lost_papers(ledger)


def _lost_papers(ledger: Ledger) -> list[str]:
    if ledger.papers is None:
        return []
    there = {paper[:3] for paper in ledger.papers}
    expected = [(marker, *place) for marker in ledger.committed for place in ((0, 0), *PLACES)]
    expected += [(marker, 0, 0) for marker in ledger.strangers | ledger.past]
    return [f"paper {paper}" for paper in sorted(expected) if paper not in there]


def _unexpected(ledger: Ledger, markers: t.Iterable[str]) -> list[str]:
    papers = {paper.marker for paper in ledger.papers or ()} - ledger.strangers - ledger.past
    return sorted({*markers, *ledger.rows, *papers} - ledger.committed)


def _doubled(ledger: Ledger) -> list[str]:
    effects = collections.Counter(effect[:3] for effect in ledger.effects)
    papers = collections.Counter(paper[:3] for paper in ledger.papers or ())
    runs = collections.Counter(ledger.rows)
    return [
        *(f"{key}: {count} times" for key, count in sorted(effects.items()) if count > 1),
        *(f"paper {key}: {count} times" for key, count in sorted(papers.items()) if count > 1),
        *(f"{marker}: {count} runs" for marker, count in sorted(runs.items()) if count > 1),
    ]


def _broken(ledger: Ledger) -> list[str]:
    wrong = [
        f"{effect.marker}: {effect.value} at {effect.step, effect.loop}"
        for effect in ledger.effects
        if effect.value != expected_values(effect.marker).get((effect.step, effect.loop))
    ]
    wrong += [
        f"{marker}: {ending.value} at the end"
        for marker, ending in ledger.endings.items()
        if ending.value != expected_values(marker)[PLACES[-1]]
    ]
    wrong += [
        f"paper {paper.marker, paper.step, paper.loop}: of run {paper.run}"
        for paper in ledger.papers or ()
        if not _is_right(paper)
    ]
    return sorted(wrong)


def _is_right(paper: Paper) -> bool:
    if paper.marker.startswith("s-"):
        return paper.run is not None
    return paper.run == (None if paper.marker.startswith(("o-", "p-")) else paper.marker)
