"""A worker tells of code that has changed since it started."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import typing as t
from pathlib import Path

import pytest

from flask_sequence.definition import registry, sources
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


USER = """
from flask_sequence import BaseSequence
from watched_steps import look

class Using(BaseSequence):
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


def touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def change(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    touch(path)


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


def test_a_file_that_is_written_again_as_it_was_is_no_change(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    keeping.do(NOTICE_CHANGED_CODE)
    touch(path)
    keeping.do(NOTICE_CHANGED_CODE)
    aside = path.with_suffix(".aside")
    shutil.copyfile(path, aside)
    aside.replace(path)
    touch(path)
    keeping.do(NOTICE_CHANGED_CODE)
    assert caplog.messages == []


def test_a_change_that_is_taken_back_is_no_second_one(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    for text in (f"{CODE}# changed", CODE):
        path.write_text(text, "utf-8")
        touch(path)
        keeping.do(NOTICE_CHANGED_CODE)
    assert len(caplog.messages) == 1


def test_a_change_between_the_import_and_the_start_of_the_worker(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(path)
    keeping = Keeping(sqlite_stepping.runtime)
    for _ in range(2):
        keeping.do(NOTICE_CHANGED_CODE)
    assert len(caplog.messages) == 1


def test_a_file_of_steps_alone_and_one_that_is_reloaded(
    sqlite_stepping: Stepping, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user = path.with_name("watched_user.py")
    user.write_text(USER, "utf-8")
    module = importlib.import_module("watched_user")
    change(path)
    importlib.reload(module)
    try:
        keeping = Keeping(sqlite_stepping.runtime)
        keeping.do(NOTICE_CHANGED_CODE)
        assert len(caplog.messages) == 1
        change(path)
        importlib.reload(sys.modules["watched_steps"])
        keeping.do(NOTICE_CHANGED_CODE)
        assert len(caplog.messages) == 1
    finally:
        del registry._registry["Using"], sys.modules["watched_user"]


def test_a_file_is_read_only_if_its_time_or_size_is_another(path: Path) -> None:
    found = sources.imported_source("watched_steps")
    assert found is not None
    assert sources.read_source(str(path), found) is found
    touch(path)
    again = sources.read_source(str(path), found)
    assert again is not found
    assert again is not None
    assert again.digest == found.digest
