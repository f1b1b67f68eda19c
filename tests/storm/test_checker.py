"""The checker of storms can turn red."""

from __future__ import annotations

import pytest

from tests.storm.checker import PLACES, Effect, Ending, Ledger, Paper, check, expected_values
from tests.storm.ledger import committed_markers
from tests.storm.sample import good_ledger


def papers_of(ledger: Ledger) -> list[Paper]:
    """Return the rows that refer to runs."""
    assert ledger.papers is not None
    return ledger.papers


def reds(ledger: Ledger) -> set[str]:
    """Give the names of what a checker finds."""
    return {name for name, rows in check(ledger).faults.items() if rows}


def test_a_good_ledger_is_good() -> None:
    findings = check(good_ledger())
    assert findings.is_good
    assert list(findings.faults) == ["lost", "doubled", "out_of_order", "unexpected", "broken"]
    assert not any(findings.faults.values())
    assert findings.recovered == 1
    assert (findings.papers, findings.strangers) == (24, 2)


def test_a_run_that_did_not_finish_is_lost() -> None:
    ledger = good_ledger()
    del ledger.endings["0-2"]
    assert reds(ledger) == {"lost"}
    assert check(ledger).lost == ["0-2: unfinished"]


def test_a_run_that_is_nowhere_is_lost() -> None:
    ledger = good_ledger()
    ledger.committed.add("7-7")
    assert reds(ledger) == {"lost"}


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_effect_is_lost(place: tuple[int, int]) -> None:
    ledger = good_ledger()
    ledger.effects = [row for row in ledger.effects if row[:3] != ("0-1", *place)]
    assert reds(ledger) == {"lost"}


@pytest.mark.parametrize("place", PLACES)
def test_a_second_effect_is_doubled(place: tuple[int, int]) -> None:
    ledger = good_ledger()
    (at,) = [n for n, row in enumerate(ledger.effects) if row[:3] == ("0-1", *place)]
    ledger.effects.insert(at, ledger.effects[at])
    assert reds(ledger) == {"doubled"}


def test_a_second_run_of_a_start_is_doubled() -> None:
    ledger = good_ledger()
    ledger.rows.append("0-1")
    assert reds(ledger) == {"doubled"}


def test_effects_in_another_order_are_found() -> None:
    ledger = good_ledger()
    ledger.effects = [row for row in ledger.effects if row.marker != "1-1"]
    assert reds(ledger) == {"lost"}
    ledger = good_ledger()
    ledger.effects.append(ledger.effects.pop(0))  # the first step of a run after its last
    assert reds(ledger) == {"out_of_order"}


def test_effects_of_a_start_that_was_rolled_back_are_unexpected() -> None:
    ledger = good_ledger()
    ledger.effects.append(Effect("0-3", 1, 0, expected_values("0-3")[1, 0]))
    assert reds(ledger) == {"unexpected"}


def test_a_run_of_a_start_that_was_rolled_back_is_unexpected() -> None:
    ledger = good_ledger()
    ledger.rows.append("0-3")
    assert reds(ledger) == {"unexpected"}


def test_another_value_breaks_the_chain() -> None:
    ledger = good_ledger()
    ledger.effects[4] = ledger.effects[4]._replace(value=1)
    assert reds(ledger) == {"broken"}
    ledger = good_ledger()
    ledger.endings["0-1"] = Ending(1, 1.0)
    assert reds(ledger) == {"broken"}


@pytest.mark.parametrize("place", [("0-1", 0, 0), ("0-1", 3, 1), ("s-1-0", 0, 0), ("p-7", 0, 0)])
def test_a_paper_that_is_missing_or_there_twice_is_found(place: tuple[str, int, int]) -> None:
    ledger = good_ledger()
    (paper,) = [paper for paper in papers_of(ledger) if paper[:3] == place]
    papers_of(ledger).remove(paper)
    assert reds(ledger) == {"lost"}
    papers_of(ledger).extend([paper] * 2)
    assert reds(ledger) == {"doubled"}


def test_a_paper_that_was_rolled_back_is_unexpected() -> None:
    for marker in ("0-3", "s-2-0"):
        ledger = good_ledger()
        papers_of(ledger).append(Paper(marker, 0, 0, "0-1"))
        assert reds(ledger) == {"unexpected"} | ({"broken"} if marker == "0-3" else set())
        assert check(ledger).unexpected == [marker]


@pytest.mark.parametrize(
    ("number", "run"), [(0, None), (0, "0-2"), (-3, None), (-1, "0-1"), (-2, "0-1")]
)
def test_a_paper_of_another_run_is_broken(number: int, run: str | None) -> None:
    ledger = good_ledger()
    papers_of(ledger)[number] = papers_of(ledger)[number]._replace(run=run)
    assert reds(ledger) == {"broken"}


def test_a_peer_has_no_papers() -> None:
    ledger = good_ledger()
    ledger.papers = None
    assert check(ledger).is_good
    assert check(ledger).papers == check(ledger).strangers == 0


def test_a_storm_that_hit_nothing_is_not_good() -> None:
    ledger = good_ledger()
    ledger.raised["0-1", 2] += 1  # on purpose: nothing had to be recovered
    assert reds(ledger) == set()
    assert check(ledger).recovered == 0
    assert not check(ledger).is_good


def test_an_unknown_commit_counts_by_the_row_beside_it() -> None:
    lines = [
        ["begin", "0-1"],
        ["committed", "0-1"],
        ["begin", "0-2"],
        ["begin", "0-3"],
        ["rolled_back", "0-4"],
    ]
    assert committed_markers(lines, ["0-2", "0-4"]) == {"0-1", "0-2"}
