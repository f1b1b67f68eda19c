"""The program that changes the code makes changes that mean something, and sees who notices."""

from __future__ import annotations

import collections
import textwrap
from pathlib import Path

import pytest

from tests.mutate.__main__ import PACKAGE, ROOMS, ROOT, Map, read_options
from tests.mutate.__main__ import draw as draw_changes
from tests.mutate.changes import changes_of

SOURCE = textwrap.dedent(
    '''
    LIMIT = 5

    def choose(rows: list, strict: bool = False) -> bool:
        """Text."""
        assert rows is not None
        found = select(rows).where(rows.a == 1, rows.b).values(status=1, due=None)
        try:
            found.count += 1
        except ValueError:
            return False
        if strict and found:
            log(found)
        return rows[0] > LIMIT
    '''
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5", "6"),
        ("False", "True"),
        ("rows.a == 1", "rows.a != 1"),
        ("found.count += 1", "pass"),
        ("ValueError", "Exception"),
        ("return False", "raise"),
        ("strict and found", "strict or found"),
        ("strict and found", "(not (strict and found))"),
        ("log(found)", "pass"),
        ("rows[0] > LIMIT", "rows[0] >= LIMIT"),
        ("rows[0] > LIMIT", "(not (rows[0] > LIMIT))"),
    ],
)
def test_a_change(old: str, new: str) -> None:
    changes = [each for each in changes_of("m.py", SOURCE) if (each.old, each.new) == (old, new)]
    assert changes
    for change in changes:
        compile(change.apply(SOURCE), "m.py", "exec")


def test_a_condition_and_a_value_are_left_out() -> None:
    news = {change.new for change in changes_of("m.py", SOURCE) if change.kind == "entry"}
    assert "select(rows).where(rows.b)" in news
    assert "select(rows).where(rows.a == 1, rows.b).values(due=None)" in news


def test_what_is_only_said_is_not_changed() -> None:
    olds = [change.old for change in changes_of("m.py", SOURCE)]
    assert not any("Text" in old or "is not None" in old for old in olds)


def test_every_change_of_the_package_can_be_compiled_and_has_a_name_of_its_own() -> None:
    drawn = draw_changes(read_options(["--count", "0"]))
    assert {Path(change.path).parts[1] for change in drawn} == set(ROOMS)
    assert max(collections.Counter(change.name for change in drawn).values()) == 1
    for change in drawn[::10]:
        source = (ROOT / change.path).read_text("utf-8")
        compile(change.apply(source), change.path, "exec")


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = (draw_changes(read_options(["--seed", seed])) for seed in "112")
    assert first == again != other
    assert len(first) == 200


def test_the_likeliest_and_the_shortest_tests_come_first() -> None:
    path = f"{PACKAGE}/rows/moves.py"
    source = (ROOT / path).read_text("utf-8")
    change = next(each for each in changes_of(path, source) if each.where == "cancel")
    seconds = {
        "tests/engine/test_control.py::a": 0.1,
        "tests/rows/test_reads.py::b": 0.1,
        "tests/rows/test_moves.py::slow": 9.0,
        "tests/rows/test_moves.py::quick": 0.1,
    }
    known = Map("", seconds, {path: {str(change.line): list(seconds)}})
    assert known.tests_of(change, source) == [*list(seconds)[:1:-1], *list(seconds)[1::-1]]
