"""Nudges of another database that come by a broker which two installations share."""

from __future__ import annotations

import shutil
import typing as t

import pytest

from flask_sequence import Status
from flask_sequence.engine.runner import Message, advance
from flask_sequence.runtime import mark_of
from tests.support import services
from tests.support.stepping import Stepping, be_worker, note
from tests.support.waiting import wait_until
from tests.support.working import Scene, WorkTwo

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from tests.support.workers import Worker

TOLD = "which is not in this database"


def end(step: t.Any) -> None:
    note("end")


@pytest.mark.parametrize(
    ("run_id", "label", "is_ours", "is_told"),
    [
        (1, "Made.end", True, False),
        (1, "Made.end", False, True),
        (2, "Made.end", False, True),  # no run has had this id
        (2, "Unknown.end", False, True),
    ],
)
def test_a_nudge_of_another_database_is_told_of_once(
    sqlite_stepping: Stepping,
    caplog: pytest.LogCaptureFixture,
    run_id: int,
    label: str,
    is_ours: bool,
    is_told: bool,
) -> None:
    stepping = sqlite_stepping
    assert stepping.start(end) == 1
    be_worker(stepping.app)
    mark = mark_of(stepping.row(1).uid) + "x" * (not is_ours)
    assert stepping.runtime.worker is not None
    for _ in range(2):
        message = Message(label=label, mark=mark)
        assert advance(stepping.runtime, run_id, 9, message=message).status is None
        # As another process sees it that has looked at the same time.
        stepping.runtime.worker.foreign_flag[0] = 0
    assert [TOLD in line for line in caplog.messages] == [True] * is_told
    assert stepping.row(1).version == 0


def test_what_has_no_mark_and_what_was_deleted_is_not_told_of(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    stepping = sqlite_stepping
    ids = [stepping.start(end) for _ in range(2)]
    be_worker(stepping.app)
    mark = mark_of(stepping.row(ids[0]).uid)
    with stepping.connect() as connection:
        connection.exec_driver_sql("DELETE FROM sequence_runs WHERE id = 1")
    advance(stepping.runtime, ids[0], 0, message=Message(label="Made.end", mark=mark))
    advance(stepping.runtime, 99, 0, message=Message(label="Made.end"))
    assert caplog.messages == []


def test_two_installations_on_one_queue(
    make_app: t.Callable[..., Flask],
    sqlite_template: Path,
    tmp_path: Path,
    start_worker: t.Callable[..., Worker],
) -> None:
    broker = services.make_broker("redis")
    scenes = []
    for name in ("ours", "theirs"):
        folder = tmp_path / name
        folder.mkdir()
        database = shutil.copy(sqlite_template, folder / "test.sqlite")
        scenes.append(Scene.make(make_app, folder, f"sqlite:///{database}", broker.config()))
    ours, theirs = scenes
    try:
        stranger = start_worker(theirs.source, "-c", "2", env=theirs.env)
        ids = ours.start(WorkTwo, 3)
        stranger.wait_for(TOLD)
        assert "SEQUENCE_QUEUE" in stranger.log
        wait_until(lambda: stranger.log.count("received") >= 3, 10)
        start_worker(ours.source, "-c", "1", env=ours.env)
        assert set(ours.wait(ids, 40)) == {Status.FINISHED}
        assert stranger.log.count(TOLD) == 1
    finally:
        broker.clear()
