"""Records which tests execute which line, those of the processes that they start included."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import typing as t
from pathlib import Path

import coverage
import pytest

from tests.support.workers import Worker

CONFIG = """
[run]
source = flask_sequence
parallel = true
data_file = {folder}/data
concurrency = thread,multiprocessing
patch = subprocess,_exit
sigterm = true
"""
SECONDS = "MUTATE_SECONDS"
"""The environment variable that names the file of how long each test takes."""
END_SECONDS = 5.0

_seconds: dict[str, float] = {}


def arguments(folder: Path) -> list[str]:
    """Give pytest's arguments for a recording.

    :param folder: An empty folder, which the recording fills.
    """
    config = folder / "coverage.ini"
    config.write_text(CONFIG.format(folder=folder))
    measure = ["--cov", "--cov-config", str(config), "--cov-context=test", "--cov-report="]
    return ["-p", "tests.mutate.recording", *measure]


def read(folder: Path, root: Path) -> dict[str, dict[int, list[str]]]:
    """Give the tests of each line of each module.

    :param folder: What ``arguments`` were given.
    :param root: The tree in which the tests ran.
    """
    data = coverage.CoverageData(str(folder / "data"))
    data.read()
    return {
        str(Path(path).relative_to(root)): {
            line: sorted({context.partition("|")[0] for context in contexts} - {""})
            for line, contexts in data.contexts_by_lineno(path).items()
        }
        for path in data.measured_files()
    }


def _is_ours(cached: object) -> bool:
    return str(getattr(cached, "__module__", "")).startswith("flask_sequence")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let what is cached be made anew, and the processes to come know the test."""
    for cached in gc.get_objects():
        if isinstance(cached, functools._lru_cache_wrapper) and _is_ours(cached):
            cached.cache_clear()
    current = coverage.Coverage.current()
    assert current is not None
    before, current.config.context = current.config.context, item.nodeid
    os.environ["COVERAGE_PROCESS_CONFIG"] = current.config.serialize()
    current.config.context = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> t.Iterator[None]:
    """Let workers that still run end by themselves: what is killed records nothing."""
    kill = Worker.kill

    def end(self: Worker) -> None:
        with contextlib.suppress(Exception):
            self.send(signal.SIGTERM)
            self.wait(END_SECONDS)
        kill(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "kill", end)
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how long a test takes."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write how long they took."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ[SECONDS]).write_text(json.dumps(_seconds))
