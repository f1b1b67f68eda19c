"""A worker tells of code that has changed since it started."""

from __future__ import annotations

import importlib
import os
import sys
import typing as t
from pathlib import Path

import pytest

from flask_sequence.definition import registry
from flask_sequence.worker.duties import NOTICE_CHANGED_CODE
from tests.support.keeping import Keeping
from tests.support.stepping import Stepping

CODE = """
from flask_sequence import BaseSequence, step

@step
def look(data):
    pass

class Watched(BaseSequence):
    steps = (look,)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Path]:
    """A file with steps, which is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "watched_steps.py"
    path.write_text(CODE, "utf-8")
    monkeypatch.delitem(sys.modules, "watched_steps", raising=False)
    importlib.import_module("watched_steps")
    yield path
    del registry._registry["Watched"], sys.modules["watched_steps"]


def change(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def test_a_changed_file_is_told_of_once(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    keeping.do(NOTICE_CHANGED_CODE)
    assert caplog.messages == []
    for count in (1, 2):
        change(path)
        for _ in range(2):
            keeping.do(NOTICE_CHANGED_CODE)
        told = f"{path} has changed since this worker started, which runs the old code until you"
        assert caplog.messages == [f"{told} restart it"] * count


def test_a_file_that_is_gone_meanwhile_is_told_of_when_it_is_back(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    aside = path.rename(path.with_suffix(".aside"))
    keeping.do(NOTICE_CHANGED_CODE)
    assert caplog.messages == []
    change(aside.rename(path))
    keeping.do(NOTICE_CHANGED_CODE)
    assert len(caplog.messages) == 1
