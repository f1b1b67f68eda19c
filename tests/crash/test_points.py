"""A few of the kills and stops of ``bin/crash``, which does all of them."""

from __future__ import annotations

import pytest

from tests.crash.arena import Setting
from tests.crash.matrix import POINTS, WAYS, Case, run_cell
from tests.crash.recovery import kill_children, kill_workers
from tests.crash.zombies import SORTS, stop_workers

SLACK = 3.0
"""What a busy machine may add to the seconds."""


def quick(database: str = "postgresql", pool: str = "prefork") -> Setting:
    """Give a setting at which a worker's death is noticed soon."""
    return Setting(database=database, pool=pool, lease=2.0, sweep=0.5)


@pytest.mark.parametrize(
    ("database", "pool"),
    [
        ("sqlite", "prefork"),
        ("postgresql", "prefork"),
        ("mariadb", "prefork"),
        ("postgresql", "threads"),
        ("postgresql", "solo"),
    ],
)
def test_a_kill_at_any_point_loses_and_doubles_nothing(database: str, pool: str) -> None:
    ways = ["kill"] * len(POINTS) if pool == "threads" else WAYS * len(POINTS)
    cases = [Case(point, way) for point, way in zip(POINTS, ways, strict=False)]
    result = run_cell(quick(database, pool), cases, print)
    assert result.problems == []
    assert result.tried == len(POINTS)


def test_the_run_of_a_killed_child_goes_on_within_seconds() -> None:
    result = kill_children(quick(), 5, print, slack=SLACK)
    assert result.problems == []
    assert len(result.seconds) == 5


def test_the_runs_of_a_killed_worker_go_on_within_seconds() -> None:
    result = kill_workers(quick(), 5, 2, print, slack=SLACK)
    assert result.problems == []
    assert len(result.seconds) == 10


@pytest.mark.parametrize(("sort", "runs"), [("step", 5), ("checkpoint", 4)])
def test_a_worker_that_stood_still_cannot_commit(sort: str, runs: int) -> None:
    assert sort in SORTS
    result = stop_workers(quick(), sort, 1, runs, print)
    assert result.problems == []
    assert result.tried == runs
