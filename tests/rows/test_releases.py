"""Tables that one release of SQLAlchemy has made serve another one, and back."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.workers import ROOT

pytestmark = pytest.mark.full

LOWEST = ROOT / ".venv-lowest" / "bin" / "python"
MAKE = ROOT / "bin" / "test-lowest"
CONSTRAINTS = (ROOT / "tests" / "lowest.txt").read_text("utf-8")
PINNED = re.findall(r"^sqlalchemy==(\S+)$", CONSTRAINTS, re.MULTILINE)
"""The oldest SQLAlchemy, in a list."""
DONE = ["finished", "Two", [["One", 1, "finished"], ["Two", 1, "finished"]]]
ENDS: dict[str, list[t.Any]] = {
    "waiting": DONE,
    "half": DONE,
    "keyed": DONE,
    "many": DONE,
    "cancelled": ["cancelled", "One", []],
    "failed": [
        "finished",
        "Two",
        [["One", 1, "finished"], ["Two", 1, "failed"], ["Two", 2, "finished"]],
    ],
    "held": [
        "finished",
        "Two",
        [["One", 1, "crashed"], ["One", 2, "finished"], ["Two", 1, "finished"]],
    ],
}
"""Status, step and history of each run of ``tests.support.releasing`` in the end."""


@functools.cache
def problem_with_lowest() -> str | None:
    """Make the environment with the oldest releases, if there is none; return what prevents it."""
    with MAKE.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # for tests in several processes
        if release_in_lowest() != PINNED:
            environment = {**os.environ, "PYTHON": sys.executable}
            made = subprocess.run(
                [MAKE, "--version"], env=environment, capture_output=True, text=True, timeout=900
            )
            if made.returncode or release_in_lowest() != PINNED:
                said = (made.stdout + made.stderr)[-500:]
                return f"bin/test-lowest cannot make .venv-lowest: {said}"
    return None


def release_in_lowest() -> list[str]:
    """Return the SQLAlchemy of the environment, if that is there."""
    if not LOWEST.exists():
        return []
    ask = "import flask_sequence, pytest, sqlalchemy; print(sqlalchemy.__version__)"
    done = subprocess.run([LOWEST, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture
def lowest() -> Path:
    """The interpreter of the environment with the oldest releases."""
    if [sa.__version__] == PINNED:
        pytest.skip("this environment holds the oldest SQLAlchemy itself")
    if problem := problem_with_lowest():
        if os.environ.get("CI") == "true":
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)
    return LOWEST


class Release:
    """An environment that uses the tables.

    :param python: Its interpreter.
    :param url: The address of the database.
    :param folder: The folder that it shares with the others.
    """

    def __init__(self, python: Path, url: str, folder: Path) -> None:
        self.command = [str(python), "-m", "tests.support.releasing", url, str(folder)]

    def do(self, *verbs: str) -> dict[str, t.Any]:
        """Have a process do something, and return its answers."""
        done = subprocess.run([*self.command, *verbs], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        answers: dict[str, t.Any] = json.loads(done.stdout.splitlines()[-1])
        return answers


def check(begun: dict[str, t.Any], answers: dict[str, t.Any]) -> None:
    """Compare what a release has begun with what another one has found and made of it.

    :param begun: The notes of the first.
    :param answers: Those of the second.
    """
    assert answers["differences"] == []
    for name, noted in begun.items():
        found, finished = answers["find"][name], answers["finish"][name]
        assert {key: found[key] for key in noted} == noted
        assert found["is_recent"]
        assert (finished["id"], finished["uid"]) == (noted["id"], noted["uid"])
        end = [finished["status"], finished["step"], finished["history"]]
        assert end == ENDS[name.partition(" ")[0]], name
        went_in, came_out = json.loads(noted["data"]), json.loads(finished["data"])
        went_in.pop("done", None)
        assert came_out.pop("done", None) == (None if name == "cancelled" else ["One", "Two"])
        assert came_out == went_in
    assert answers["find"]["failed"]["error"] == "RuntimeError: out of order 🎉"
    assert answers["find"]["keyed"]["key"] == "order-1"
    assert json.loads(answers["find"]["keyed"]["options"]) == {"queue": "mail", "priority": 3}
    assert answers["purge"] == 0


USE = ("differences", "find", "finish", "purge")


@pytest.mark.parametrize("make", ["create", "migrate"])
@pytest.mark.parametrize("is_lowest_first", [True, False], ids=["lowest first", "newest first"])
def test_tables_of_one_release_serve_another_one_and_back(
    lowest: Path, empty_database_url: str, tmp_path: Path, make: str, is_lowest_first: bool
) -> None:
    environments = (lowest, Path(sys.executable))
    first, second = (
        Release(python, empty_database_url, tmp_path)
        for python in (environments if is_lowest_first else reversed(environments))
    )
    begun = first.do(make, "begin")
    used = second.do(*USE, "begin")
    check(begun["begin"], used)
    assert begun["release"] != used["release"]
    check(used["begin"], first.do(*USE))
