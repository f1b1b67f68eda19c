"""Two small storms, and that the checker of storms can turn red."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import typing as t
from xml.etree import ElementTree

import pytest

from tests.storm.__main__ import make_parser
from tests.storm.checker import (
    PLACES,
    STEPS,
    Effect,
    Ending,
    Findings,
    Ledger,
    Paper,
    check,
    expected_values,
)
from tests.storm.ledger import Counts, committed_markers
from tests.storm.nemesis import (
    CUTS,
    KILLS,
    Fault,
    plan_cuts,
    plan_kills,
    plan_servers,
    stop_seconds,
)
from tests.storm.place import Options
from tests.storm.progress import Progress
from tests.storm.report import Result, text, write
from tests.storm.storm import run_storm
from tests.storm.strangers import ENDS, EVERY, HELD, plan_strangers

if t.TYPE_CHECKING:
    from pathlib import Path

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
    papers.append(Paper("s-1-0", 0, 0, "0-1"))
    return Ledger(
        set(MARKERS),
        effects,
        list(MARKERS),
        endings,
        attempts,
        papers=papers,
        strangers={"s-1-0"},
    )


def papers_of(ledger: Ledger) -> list[Paper]:
    """Return the rows that refer to runs."""
    assert ledger.papers is not None
    return ledger.papers


def reds(ledger: Ledger) -> set[str]:
    """Give the names of what a checker finds."""
    return {name for name, rows in check(ledger).faults.items() if rows}


# The checker


def test_a_good_ledger_is_good() -> None:
    findings = check(good_ledger())
    assert findings.is_good
    assert list(findings.faults) == ["lost", "doubled", "out_of_order", "unexpected", "broken"]
    assert not any(findings.faults.values())
    assert findings.recovered == 1
    assert (findings.papers, findings.strangers) == (24, 1)


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


@pytest.mark.parametrize("place", [("0-1", 0, 0), ("0-1", 3, 1), ("s-1-0", 0, 0)])
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


@pytest.mark.parametrize("number", [0, -1], ids=["of a step", "of a stranger"])
def test_a_paper_without_its_run_is_broken(number: int) -> None:
    ledger = good_ledger()
    papers_of(ledger)[number] = papers_of(ledger)[number]._replace(run=None)
    assert reds(ledger) == {"broken"}


def test_a_peer_has_no_papers() -> None:
    ledger = good_ledger()
    ledger.papers, ledger.strangers = None, set()
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


# The nemesis


def test_the_same_seed_plans_the_same() -> None:
    options = Options(seconds=100, flushes=6, database_restarts=3, broker_restarts=1)
    other = dataclasses.replace(options, seed=2)
    assert plan_kills(options) == plan_kills(options) != plan_kills(other)
    assert plan_servers(options) == plan_servers(options) != plan_servers(other)


def test_as_much_is_planned_as_was_asked_for() -> None:
    options = Options(seconds=120, kill_every=1, flushes=6, database_restarts=3)
    kills, servers = plan_kills(options), plan_servers(options)
    assert [planned.at for planned in kills] == list(range(1, 121))
    assert {planned.kind for planned in kills} == set(KILLS)
    counts = collections.Counter(planned.kind for planned in servers)
    assert counts == {"flush": 6, "database": 3}
    assert all(0 < planned.at < 120 for planned in servers)
    stops = [planned.at for planned in kills if planned.kind == "stop"]
    long = stop_seconds(options)
    assert all(after - before >= long for before, after in itertools.pairwise(stops))
    assert stops[-1] + long <= 120
    assert plan_kills(dataclasses.replace(options, kill_every=0)) == []


def test_each_link_is_cut_in_turn() -> None:
    options = Options(seconds=120, partition=True)
    plan = plan_cuts(options)
    assert plan == plan_cuts(options) != plan_cuts(dataclasses.replace(options, seed=2))
    assert [planned.at for planned in plan] == list(range(10, 121, 10))
    assert {planned.kind for planned in plan} == set(CUTS)
    longest = max(planned.seconds for planned in plan if planned.kind == "worker cut")
    assert longest > options.lease + options.sweep
    assert plan_cuts(Options(seconds=120)) == []


def test_strangers_come_where_the_database_is_a_server() -> None:
    options = Options(seconds=120)
    plan = plan_strangers(options)
    assert plan == plan_strangers(options) != plan_strangers(dataclasses.replace(options, seed=2))
    assert len(plan) == 120 / EVERY
    assert {planned.kind for planned in plan} == set(ENDS)
    assert all(HELD[0] <= planned.seconds <= HELD[1] for planned in plan)
    for without in ({"strangers": False}, {"database": "sqlite"}, {"peer": "celery-chain"}):
        assert plan_strangers(dataclasses.replace(options, **t.cast(t.Any, without))) == []


# The report


def make_result(**changes: t.Any) -> Result:
    servers = ("flush", "broker", "database")
    faults = [Fault(kind, "one", 2.0, 5.0) for kind in (*KILLS, *CUTS, *ENDS, *servers)]
    result = Result(
        options=Options(runs=3),
        findings=check(good_ledger()),
        faults=faults,
        started=[1.0, 2.0, 3.0],
        finished=[10.0, 11.0, 12.0],
        began=0.0,
        last_fault=5.0,
        ended_workers=[],
        errors=[],
        standing=[],
        loads=(0.5, 1.5),
    )
    return dataclasses.replace(result, **changes)


def test_a_report_tells_the_figures(tmp_path: Path) -> None:
    result = make_result()
    write(result, tmp_path)
    assert "all done       7.0 s after the last fault" in (tmp_path / "report.txt").read_text()
    assert "foreign rows   24 of starts and steps, 1 of strangers" in text(result)
    assert text(result).endswith("GOOD")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["good"] is True
    assert figures["seconds_from_last_fault_to_last_finish"] == 7.0
    svg = "{http://www.w3.org/2000/svg}"
    picture = ElementTree.parse(tmp_path / "timeline.svg").getroot()
    assert len(picture.findall(f"{svg}polyline")) == 2
    assert len(picture.findall(f"{svg}rect/{svg}title")) == len(result.faults)


@pytest.mark.parametrize(
    "changes",
    [
        {"findings": check(Ledger())},
        {"findings": Findings(["x"], [], [], [], [], 1)},
        {"findings": dataclasses.replace(check(good_ledger()), strangers=0)},
        {"finished": [36.0]},
        {"errors": ["harm_servers: it did not start"]},
    ],
)
def test_a_report_says_what_is_bad(changes: dict[str, t.Any]) -> None:
    result = make_result(**changes)
    assert result.problems
    assert "BAD: " in text(result)


def test_progress_is_redrawn_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    faults = [Fault("child", "", 0, 0)]
    for stream, redrawn in ((Terminal(), True), (io.StringIO(), False)):
        progress = Progress(10, stream)
        for finished in (2, 5):
            progress.show("storm", Counts(9, finished, 50), faults, answers=True)
        shown = stream.getvalue()
        assert ("\x1b[3F" in shown) == redrawn
        assert shown.count("5 finished") == redrawn  # else a line every few seconds
        assert "1 child" in shown


def test_every_option_has_an_argument() -> None:
    arguments = vars(make_parser().parse_args([]))
    del arguments["output"]
    assert Options(**arguments) == Options()


# The storms

SMALL = Options(
    seconds=8,
    flushes=1,
    database_restarts=1,
    lease=2,
    sweep=0.5,
    workers=2,
    settle=90,
    goal=90,
)


@pytest.mark.parametrize(
    "options",
    [
        dataclasses.replace(SMALL, runs=60),
        dataclasses.replace(SMALL, runs=40, database="sqlite", broker="embedded", kill_every=0.7),
    ],
    ids=lambda options: f"{options.database}-{options.broker}",
)
def test_nothing_is_lost_and_nothing_happens_twice(options: Options, tmp_path: Path) -> None:
    result = run_storm(options, tmp_path, io.StringIO())
    assert result.problems == [], text(result)
    assert (result.findings.strangers > 0) == (options.database != "sqlite")
    kinds = {fault.kind for fault in result.faults}
    assert kinds >= {"child", "flush", "database"}
    assert len(result.finished) >= options.runs


def test_nothing_is_lost_where_links_are_cut(tmp_path: Path) -> None:
    options = dataclasses.replace(
        SMALL, runs=40, seconds=16, cut_every=8.0, partition=True, workers=2, kill_every=0.0
    )
    options = dataclasses.replace(options, flushes=0, database_restarts=0, step_seconds=0.2)
    result = run_storm(options, tmp_path, io.StringIO())
    assert result.problems == [], text(result)
    assert len(result.faults) == 2
    assert len(result.finished) >= options.runs
