"""How far a run has come, also where its steps were renamed, moved, added or removed."""

from __future__ import annotations

import copy
import json
import pickle
import typing as t

import pytest
from flask import Flask

from flask_sequence import Progress, SequenceRun, StepProgress
from flask_sequence.status import Status, progress_of
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.starts import TwoSteps
from tests.support.stepping import Stepping, make_sequence, make_step, note


def states(progress: Progress) -> str:
    return ", ".join(f"{step.name} {step.state}" for step in progress.steps)


@pytest.mark.parametrize(
    ("names", "step", "status", "done", "shown"),
    [
        ("abc", "a", "waiting", "", "a waiting, b to come, c to come"),
        ("abc", "b", "running", "a", "a finished, b running, c to come"),
        ("abc", "c", "failed", "ab", "a finished, b finished, c failed"),
        ("abc", "c", "finished", "abc", "a finished, b finished, c finished"),
        ("abc", "b", "finished", "ab", "a finished, b finished, c skipped"),
        ("abc", "b", "cancelled", "a", "a finished, b cancelled, c skipped"),
        # changed while it was under way
        ("axc", "b", "blocked", "a", "a finished, b blocked, c to come"),  # renamed
        ("anbc", "b", "waiting", "a", "a finished, n skipped, b waiting, c to come"),  # added
        ("bc", "b", "waiting", "a", "b waiting, c to come"),  # removed
        ("cab", "a", "waiting", "", "c skipped, a waiting, b to come"),  # moved
        ("bac", "b", "waiting", "a", "b waiting, a to come, c to come"),
        ("bac", "b", "failed", "a", "b failed, a to come, c to come"),  # which would run again
        # changed after its end
        ("cab", "c", "finished", "abc", "c finished, a finished, b finished"),  # moved
        ("acb", "c", "finished", "abc", "a finished, c finished, b finished"),
        ("dcba", "a", "finished", "abcdcba", "d finished, c finished, b finished, a finished"),
        ("ca", "c", "finished", "abc", "c finished, a finished"),  # one moved, one removed
        ("ab", "c", "finished", "abc", "a finished, b finished, c finished"),  # removed
        ("acn", "c", "finished", "abc", "a finished, c finished, n skipped"),
        ("abx", "c", "finished", "abc", "a finished, b finished, c finished"),  # renamed
        ("cxb", "c", "finished", "abc", "c finished, x skipped, b finished"),  # moved, renamed
        ("bacd", "b", "cancelled", "a", "b cancelled, a finished, c skipped, d skipped"),
        ("ax", "b", "cancelled", "a", "a finished, b cancelled"),
        ("ad", "b", "cancelled", "", "b cancelled, d skipped"),
        ("", "b", "blocked", "a", "a finished, b blocked"),  # the sequence is not known
    ],
)
def test_progress(names: str, step: str, status: str, done: str, shown: str) -> None:
    progress = progress_of(tuple(names), step, Status(status), list(done))
    assert states(progress) == shown
    assert progress.total == len(progress.steps)
    assert progress.position == shown.count("finished")


def test_of_a_run(app: Flask) -> None:
    with app.app_context():
        run = TwoSteps.start(note="x")
        assert run.progress.steps[0] == StepProgress("First", t.cast("t.Any", "waiting"))
        assert (run.progress.position, run.progress.total) == (0, 2)
        db.session.commit()
        assert drain(app) == 2
        db.session.rollback()
        assert states(run.progress) == "First finished, Second finished"
        assert run.progress.position == 2


def test_after_a_rename(sqlite_stepping: Stepping) -> None:
    def first(step: t.Any) -> None:
        note("first")

    run_id = sqlite_stepping.start(first, make_step(first, "second"))
    sqlite_stepping.advance(run_id)
    make_sequence(first, make_step(first, "renamed"), make_step(first, "last"))
    with sqlite_stepping.app.app_context():
        progress = db.session.get_one(SequenceRun, run_id).progress
    assert states(progress) == "first finished, second waiting, last to come"


# Its data, which goes along


def test_data_can_be_returned_by_a_view_and_copied(sqlite_app: Flask) -> None:
    run = TwoSteps.start(a={"b": [1]})
    db.session.commit()
    sqlite_app.add_url_rule("/", view_func=lambda: {"run": run.data, **run.data})
    assert sqlite_app.test_client().get("/").json == {"run": {"a": {"b": [1]}}, "a": {"b": [1]}}
    assert json.loads(json.dumps(run.data)) == run.data
    for copied in (copy.deepcopy(run.data), pickle.loads(pickle.dumps(run.data))):
        assert type(copied) is dict
        copied["a"]["b"].append(2)
        assert run.data == {"a": {"b": [1]}}
    assert type(copy.copy(run.data)) is type(dict(run.data)) is dict
