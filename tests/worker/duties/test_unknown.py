"""What no worker knows is blocked, and goes on once one does."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from flask import Flask

from flask_sequence import Status
from flask_sequence.rows import reads
from flask_sequence.rows.dialects import later
from flask_sequence.worker.duties import BLOCK_UNKNOWN, PUBLISH_DUE, UNBLOCK_KNOWN, unknown
from tests.support.keeping import Keeping
from tests.support.logs import level_of
from tests.support.stepping import Stepping, make_sequence, make_step, note

DEFAULT = "celery"


def end(step: t.Any) -> None:
    note("end")


def mark_unknown(stepping: Stepping, queue: str) -> None:
    keeping = Keeping(stepping.runtime, queue)
    for duty in (BLOCK_UNKNOWN, UNBLOCK_KNOWN):
        keeping.do(duty)


def test_unknown_steps_are_blocked_after_two_intervals_and_freed(
    stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {stepping.start(end): name for name in ("old", "old, too", "other", "fresh", "known")}
    for run_id, name in ids.items():
        values: dict[str, t.Any] = {} if name == "known" else {"step": "renamed"}
        values["due_at"] = later(-6 if name == "fresh" else -10.5)
        stepping.set(run_id, **values, **({"queue": "other"} if name == "other" else {}))
    caplog.set_level("INFO")
    mark_unknown(stepping, DEFAULT)
    blocked = {name for run_id, name in ids.items() if stepping.row(run_id).status == "blocked"}
    assert blocked == {"old", "old, too"}
    rows = [stepping.row(run_id) for run_id in ids]
    assert rows[0].error == (
        "The sequence 'Made' has no step 'renamed'; its steps are end. Was it renamed, or was"
        " this worker not restarted since it was added? Give it that name with name = 'renamed' in"
        " its class, or with @step(name='renamed'); or cancel the run."
    )
    assert (rows[0].version, rows[0].attempt, rows[0].due_at) == (1, 0, None)
    assert level_of(caplog, "2 runs are blocked") == "WARNING"
    assert stepping.advance(rows[0].id).status is None

    make_sequence(end, make_step(end, "renamed"))
    mark_unknown(stepping, "elsewhere")
    row = stepping.row(rows[0].id)
    assert (row.status, row.error, row.version) == (Status.WAITING, None, 2)
    assert level_of(caplog, "2 runs at step Made.renamed no longer blocked") == "INFO"
    nudges = Keeping(stepping.runtime).do(PUBLISH_DUE)
    assert {rows[0].id, rows[1].id} <= {nudge.run_id for nudge in nudges}
    assert stepping.advance(row.id).status is Status.FINISHED


def test_a_pass_over_all_that_it_may_read_is_followed_by_another_soon(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "OLDEST", 2)
    for _ in range(3):
        sqlite_stepping.set(sqlite_stepping.start(end), step="renamed", due_at=later(-60))
    keeping = Keeping(sqlite_stepping.runtime)
    assert keeping.perform(BLOCK_UNKNOWN) == unknown.AGAIN_SECONDS
    assert keeping.perform(BLOCK_UNKNOWN) is None


def test_a_walk_that_fails_is_begun_anew(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not count as one that came to its end, after which the duty rests for long."""
    run_id = sqlite_stepping.start(end)
    sqlite_stepping.set(run_id, status=Status.BLOCKED, due_at=None)
    keeping = Keeping(sqlite_stepping.runtime)
    with monkeypatch.context() as patch:
        patch.setattr(reads, "blocked", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keeping.do(UNBLOCK_KNOWN)
    keeping.do(UNBLOCK_KNOWN)
    assert sqlite_stepping.row(run_id).status is Status.WAITING


def test_the_sentence_for_a_blocked_run_names_what_may_help(
    make_app: t.Callable[..., Flask], sqlite_url: str
) -> None:
    stepping = Stepping(make_app(sqlite_url, SEQUENCE_IMPORTS=("tests.support.starts",)))
    run_id = stepping.start(end)
    stepping.set(run_id, sequence="Renamed", due_at=later(-60))
    mark_unknown(stepping, DEFAULT)
    assert stepping.row(run_id).error == (
        "The step 'end' of the sequence 'Renamed' is not known to the workers of its queue: name"
        " the module that defines it in SEQUENCE_IMPORTS, which names tests.support.starts, and"
        " restart them."
    )


def test_a_walk_goes_on_where_the_last_pass_has_stopped(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown, "MOVED_AT_ONCE", 1)
    ids = [sqlite_stepping.start(end) for _ in range(3)]
    for run_id in ids:
        gone = {} if run_id == ids[-1] else {"step": "gone"}
        sqlite_stepping.set(run_id, status=Status.BLOCKED, due_at=None, **gone)
    few = dataclasses.replace(UNBLOCK_KNOWN, rows=1)
    keeping = Keeping(sqlite_stepping.runtime, duties=[few])
    for _ in range(4):
        keeping.do(few)
    statuses = [sqlite_stepping.row(run_id).status for run_id in ids]
    assert statuses == [Status.BLOCKED, Status.BLOCKED, Status.WAITING]
