"""Small storms, their nemesis, and what is told of them."""

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
from tests.storm.checker import Findings, Ledger, check
from tests.storm.ledger import Counts
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
from tests.storm.sample import good_ledger
from tests.storm.storm import run_storm
from tests.storm.strangers import ENDS, EVERY, HELD, plan_strangers

if t.TYPE_CHECKING:
    from pathlib import Path

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
    assert "foreign rows   24 of starts and steps, 2 of strangers" in text(result)
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
        {"unpurged": 1},
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
        pytest.param(
            dataclasses.replace(SMALL, runs=40, database="mariadb", lock_wait=1),
            marks=pytest.mark.full,
        ),
        dataclasses.replace(SMALL, runs=60),
        pytest.param(
            dataclasses.replace(
                SMALL, runs=40, database="sqlite", broker="embedded", kill_every=0.7
            ),
            marks=pytest.mark.full,
        ),
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


@pytest.mark.full
def test_nothing_is_lost_where_links_are_cut(tmp_path: Path) -> None:
    options = dataclasses.replace(
        SMALL, runs=40, seconds=16, cut_every=8.0, partition=True, workers=2, kill_every=0.0
    )
    options = dataclasses.replace(options, flushes=0, database_restarts=0, step_seconds=0.2)
    result = run_storm(options, tmp_path, io.StringIO())
    assert result.problems == [], text(result)
    assert sum(fault.kind in CUTS for fault in result.faults) == 2
    assert len(result.finished) >= options.runs
