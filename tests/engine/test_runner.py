"""What comes of a nudge: the claim, the body in its context, one commit, and what follows."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import typing as t
import weakref
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from flask import Flask, appcontext_pushed, g
from flask.globals import app_ctx
from sqlalchemy.orm import Session

from flask_sequence import Status, StepStatus, step
from flask_sequence.engine import attempt
from flask_sequence.engine.attempt import LEFT_ALONE
from flask_sequence.engine.in_hand import InHand
from flask_sequence.engine.runner import advance, stand_in
from flask_sequence.rows import reads
from flask_sequence.rows.dialects import clock, later
from flask_sequence.rows.models import EMPTIED, step_runs, workers
from tests.support.application import Effect, db
from tests.support.logs import level_of
from tests.support.stepping import Stepping, be_worker, make_sequence, make_step, note

FINISHED = StepStatus.FINISHED


def a(step: t.Any) -> None:
    note("a")
    step.data["a"] = step.attempt


def b(step: t.Any) -> None:
    note("b")


def test_step_after_step(stepping: Stepping) -> None:
    run_id = stepping.start(a, b)
    first = stepping.advance(run_id, ignore_due=False)
    row = stepping.row(run_id)
    assert (first.status, first.attempts, first.error) == (Status.WAITING, 1, None)
    assert first.nudge is not None
    assert (first.nudge.run_id, first.nudge.version) == (run_id, row.version)
    assert (first.nudge.label, first.nudge.countdown) == ("Made.b", 0.0)
    assert (row.status, row.step, dict(row.data)) == (Status.WAITING, "b", {"a": 1})
    assert (row.worker_id, row.pid, row.step_started_at, row.attempt) == (None, None, None, 0)
    assert row.due_at is not None
    assert row.published_at is not None

    second = advance(stepping.runtime, run_id, first.nudge.version)
    row = stepping.row(run_id)
    assert (second.status, second.nudge) == (Status.FINISHED, None)
    assert (row.status, row.step, row.worker_id) == (Status.FINISHED, "b", None)
    assert row.created_at <= row.started_at <= min(row.finished_at, row.updated_at)
    assert stepping.notes() == ["a", "b"]
    assert stepping.history(run_id) == [("a", 1, FINISHED), ("b", 1, FINISHED)]


# The claim


def test_stale_nudges_are_dropped(stepping: Stepping) -> None:
    run_id = stepping.start(a, b)
    stepping.advance(run_id)
    version = stepping.row(run_id).version
    for stale in (version - 2, version - 1, version + 1):
        assert advance(stepping.runtime, run_id, stale) is LEFT_ALONE
    assert advance(stepping.runtime, run_id + 1, 0) is LEFT_ALONE
    assert stepping.row(run_id).version == version
    assert stepping.notes() == ["a"]


def test_a_nudge_that_comes_too_early_is_sent_again_for_the_rest(stepping: Stepping) -> None:
    run_id = stepping.start(a)
    stepping.set(run_id, due_at=later(2.0))
    before = stepping.row(run_id)
    outcome = stepping.advance(run_id, ignore_due=False)
    assert outcome.nudge is not None
    assert 0.5 < outcome.nudge.countdown <= 2.0
    assert outcome.nudge.version == before.version
    stepping.set(run_id, due_at=later(3600.0))
    assert stepping.advance(run_id, ignore_due=False) is LEFT_ALONE  # The sweep sends it.
    stepping.set(run_id, due_at=None)
    assert stepping.advance(run_id, ignore_due=False) is LEFT_ALONE
    assert stepping.advance(run_id, ignore_due=True) is LEFT_ALONE  # Not due by the clock.
    assert stepping.row(run_id).version == before.version
    assert stepping.notes() == []


@pytest.mark.parametrize(
    ("change", "cure"),
    [({"sequence": "Elsewhere"}, "SEQUENCE_IMPORTS"), ({"step": "renamed"}, "name = 'renamed'")],
)
def test_an_unknown_step_is_left_alone(
    sqlite_stepping: Stepping,
    change: dict[str, str],
    cure: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = sqlite_stepping.start(a)
    sqlite_stepping.set(run_id, **change)
    before = sqlite_stepping.row(run_id)
    assert sqlite_stepping.advance(run_id, ignore_due=False) is LEFT_ALONE
    assert sqlite_stepping.row(run_id) == before
    assert cure in caplog.text
    sqlite_stepping.set(run_id, due_at=later(1.0))
    assert sqlite_stepping.advance(run_id, ignore_due=False) is LEFT_ALONE


@pytest.mark.parametrize("ignore_due", [True, False])
def test_a_newer_row_is_left_alone(
    sqlite_stepping: Stepping, ignore_due: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = sqlite_stepping.start(a)
    sqlite_stepping.set(run_id, format=2)
    assert sqlite_stepping.advance(run_id, ignore_due=ignore_due) is LEFT_ALONE
    assert "newer release" in caplog.text
    assert sqlite_stepping.row(run_id).attempt == 0


def test_a_row_without_its_data_is_left_alone(sqlite_stepping: Stepping) -> None:
    run_id = sqlite_stepping.start(a)
    sqlite_stepping.set(run_id, format=EMPTIED)
    assert sqlite_stepping.advance(run_id) is LEFT_ALONE
    assert sqlite_stepping.row(run_id).attempt == 0


def test_of_two_claimers_one_gets_it(stepping: Stepping) -> None:
    together = threading.Barrier(2)
    run_id = stepping.start(a, b)
    version = stepping.row(run_id).version
    outcomes = []

    def claim() -> None:
        together.wait(10)
        outcomes.append(advance(stepping.runtime, run_id, version))

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcome.attempts for outcome in outcomes) == [0, 1]
    assert stepping.notes() == ["a"]


def test_a_step_under_a_run_in_hand_has_a_fence_of_its_own(sqlite_stepping: Stepping) -> None:
    child = make_sequence(a, name="Child")
    with sqlite_stepping.app.app_context():
        run = child.start()
        db.session.commit()
        inner = run.id

    def outer(step: t.Any) -> None:
        assert sqlite_stepping.advance(inner).status is Status.FINISHED
        note("outer")

    assert sqlite_stepping.run(outer).status is Status.FINISHED
    assert sqlite_stepping.notes() == ["a", "outer"]


def test_a_run_is_in_hand_as_long_as_it_is_performed(sqlite_stepping: Stepping) -> None:
    worker, seen = be_worker(sqlite_stepping.app), list[bool]()

    def body(step: t.Any) -> None:
        seen.append(worker.in_hand.is_without_hand(os.getpid(), step.run.id))

    row = sqlite_stepping.run(body)
    assert row.status is Status.FINISHED
    assert (seen, worker.in_hand.is_without_hand(os.getpid(), row.id)) == ([False], True)


def test_standing_in_for_a_worker(sqlite_stepping: Stepping) -> None:
    runtime = sqlite_stepping.runtime
    mine = runtime.worker_id
    stand_in(runtime)
    assert runtime.worker_id == mine
    runtime.stand_in_id = "0-of-the-parent"
    stand_in(runtime)
    assert runtime.worker_id not in (mine, "0-of-the-parent")
    be_worker(sqlite_stepping.app)
    stand_in(runtime)
    assert runtime.worker_id == "worker"


# The app context


def test_each_attempt_has_an_app_context_of_its_own(stepping: Stepping) -> None:
    seen: list[t.Any] = []

    def look(step: t.Any) -> None:
        context = app_ctx._get_current_object()  # type: ignore[attr-defined]
        assert all(context is not other for other in seen)
        seen.append(context)
        assert "left" not in g
        assert not list(db.session)
        g.left = True
        note("left")
        if len(seen) == 1:
            db.session.flush()
            raise ValueError("again")
        db.session.commit()

    with stepping.app.app_context():
        db.session.add(Effect(note="of the caller"))
        run_id = stepping.start(look, make_step(look, "second"))
        stepping.app.config["LEFT"] = g.left = "outer"
        for _ in range(3):
            stepping.advance(run_id)
        assert (g.left, len(db.session.new)) == ("outer", 1)
    assert len(seen) == 3
    assert stepping.notes() == ["left", "left"]


def test_a_teardown_that_raises_changes_nothing(
    make_app: t.Callable[..., Flask], sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(sqlite_url)
    stepping = Stepping(app)
    raises: list[type[BaseException]] = []

    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        if raises:
            raise raises[0]("in the teardown")

    be_worker(stepping.app)
    run_id = stepping.start(a, b)
    raises.append(ValueError)
    assert stepping.advance(run_id).status is Status.WAITING
    assert "An error in the application's teardown" in caplog.text
    assert not db.session.registry.registry
    raises[0] = SystemExit
    assert stepping.row(run_id).attempt == 0
    raises.clear()
    assert stepping.advance(run_id).status is Status.FINISHED
    assert stepping.notes() == ["a", "b"]


def test_a_context_that_cannot_be_entered_is_a_failure(sqlite_stepping: Stepping) -> None:
    pushes: list[Flask] = []

    def fail(sender: Flask, **_: t.Any) -> None:
        pushes.append(sender)
        if len(pushes) == 3:  # The first ones are those of the nudge and of its claim.
            raise ValueError("not now")

    run_id = sqlite_stepping.start(a)
    with appcontext_pushed.connected_to(fail):
        outcome = contextvars.copy_context().run(sqlite_stepping.advance, run_id)
    row = sqlite_stepping.row(run_id)
    assert (outcome.status, row.status, row.error) == (
        Status.WAITING,
        Status.WAITING,
        "ValueError: not now",
    )


# The data


def test_what_a_step_changes_in_the_data_is_kept(stepping: Stepping) -> None:
    def change(step: t.Any) -> None:
        step.data["list"].append({"new": [1]})
        step.data["deep"]["er"]["x"] = True
        del step.data["gone"]
        step.data["late"] = 1
        db.session.rollback()  # Takes back no data.

    def replace(step: t.Any) -> None:
        assert step.data["list"] == [{"new": [1]}]
        step.data = {"replaced": step.data["deep"]}

    run_id = stepping.start(change, replace, deep={"er": {}}, list=[], gone=0)
    stepping.advance(run_id)
    changed = {"deep": {"er": {"x": True}}, "list": [{"new": [1]}], "late": 1}
    assert dict(stepping.row(run_id).data) == changed
    stepping.advance(run_id)
    assert dict(stepping.row(run_id).data) == {"replaced": {"er": {"x": True}}}


@pytest.mark.parametrize("returned", [{"x": 2}, object(), False], ids=["dict", "object", "False"])
def test_what_a_step_returns_is_not_kept(sqlite_stepping: Stepping, returned: object) -> None:
    @step
    def function(data: dict[str, t.Any]) -> object:
        return returned

    run_id = sqlite_stepping.start(lambda step: returned, function, b, x=1)
    for _ in range(3):
        assert sqlite_stepping.advance(run_id).error is None
    row = sqlite_stepping.row(run_id)
    assert (row.status, dict(row.data), row.attempt) == (Status.FINISHED, {"x": 1}, 1)
    assert [end for _, _, end in sqlite_stepping.history(run_id)] == [StepStatus.FINISHED] * 3


def test_data_that_did_not_change_is_not_written(stepping: Stepping) -> None:
    def same(step: t.Any) -> None:
        step.data["x"].append(step.data["x"].pop())
        step.data = dict(reversed(step.data.items()))

    run_id = stepping.start(same, b, x=[1.0, "é"], y=None)
    with stepping.statements() as sent:
        stepping.advance(run_id)
    updates = [statement for statement in sent if "UPDATE sequence_runs" in statement]
    assert len(updates) == 2  # The claim, and the move.
    assert not any("data=" in statement for statement in updates)


@pytest.mark.parametrize("data", [{"x": {1}}, None, {"big": "x" * 5_000_000}])
def test_data_that_cannot_be_kept_fail_the_run(sqlite_stepping: Stepping, data: t.Any) -> None:
    def change(step: t.Any) -> None:
        note("lost")
        step.data = data

    row = sqlite_stepping.run(change, kept=1)
    assert (row.status, dict(row.data), row.retries) == (Status.FAILED, {"kept": 1}, 0)
    assert row.error.startswith(("DataError: data", "DataTooLargeError: data"))
    assert sqlite_stepping.notes() == []


def test_a_step_that_touches_no_session_fires_no_event_of_one(sqlite_stepping: Stepping) -> None:
    def quiet(step: t.Any) -> None:
        step.data["n"] = 1

    def note_commit(session: Session) -> None:
        fired.append("commit")

    for body, expected in ((quiet, []), (b, ["commit"])):
        run_id, fired = sqlite_stepping.start(body), list[str]()
        sa.event.listen(Session, "before_commit", note_commit)
        sqlite_stepping.advance(run_id)
        sa.event.remove(Session, "before_commit", note_commit)
        assert (fired, sqlite_stepping.row(run_id).status) == (expected, Status.FINISHED)


def test_what_filled_the_memory_is_let_go(sqlite_stepping: Stepping) -> None:
    left = []

    def fill(step: t.Any) -> None:
        large = set[int]()
        seen = weakref.ref(large)
        sa.event.listen(db.session(), "after_rollback", lambda session: left.append(seen()))
        note("lost")
        db.session.flush()
        raise MemoryError

    row = sqlite_stepping.run(fill)
    assert (row.status, row.error, left) == (Status.WAITING, "MemoryError", [None])


def test_a_run_started_in_a_step_is_part_of_it(stepping: Stepping) -> None:
    child = make_sequence(b, name="Child")

    def spawn(step: t.Any) -> None:
        child.start(of=step.attempt)
        if step.attempt == 1:
            db.session.flush()
            raise ValueError("not yet")

    run_id = stepping.start(spawn)
    for count in (0, 1):
        stepping.advance(run_id)
        assert len([nudge for nudge in stepping.published if nudge.label == "Child.b"]) == count


# A burst


@pytest.fixture
def burst(make_app: t.Callable[..., Flask], database_url: str) -> Stepping:
    return Stepping(make_app(database_url, SEQUENCE_BURST_SECONDS=60))


def test_a_burst_goes_on_under_the_same_claim(burst: Stepping) -> None:
    contexts = []

    def look(step: t.Any) -> None:
        contexts.append(app_ctx._get_current_object())  # type: ignore[attr-defined]
        step.data["n"] += 1
        assert step.attempt == 1

    steps = [make_step(look, f"s{n}") for n in range(4)]
    run_id = burst.start(*steps, n=0)
    with burst.statements() as sent:
        outcome = burst.advance(run_id)
    assert (outcome.status, outcome.attempts, outcome.nudge) == (Status.FINISHED, 4, None)
    row = burst.row(run_id)
    assert (dict(row.data), row.version) == ({"n": 4}, 5)
    assert [attempt[0] for attempt in burst.history(run_id)] == ["s0", "s1", "s2", "s3"]
    assert len([statement for statement in sent if "UPDATE sequence_runs" in statement]) == 5
    assert len({id(context) for context in contexts}) == 4


def test_a_burst_ends_in_a_failure_of_the_step_in_hand(burst: Stepping) -> None:
    def fail(step: t.Any) -> None:
        raise ValueError("no")

    run_id = burst.start(a, make_step(fail, default_retry_delay=100))
    outcome = burst.advance(run_id)
    row = burst.row(run_id)
    assert (outcome.attempts, outcome.nudge, row.status) == (2, None, Status.WAITING)
    assert (row.step, row.attempt, row.retries, row.worker_id) == ("fail", 1, 1, None)
    assert burst.history(run_id) == [("a", 1, FINISHED), ("fail", 1, StepStatus.RETRY)]


@pytest.mark.parametrize(
    "options",
    [{"queue": "other"}, {"priority": 3}, {"time_limit": 9}, {"soft_time_limit": 9}],
    ids=str,
)
@pytest.mark.parametrize("is_next", [True, False])
def test_a_burst_stops_where_a_message_says_more(
    make_app: t.Callable[..., Flask], sqlite_url: str, options: dict[str, t.Any], is_next: bool
) -> None:
    burst = Stepping(make_app(sqlite_url, SEQUENCE_BURST_SECONDS=60))
    pair = [
        make_step(a, **({} if is_next else options)),
        make_step(b, **(options if is_next else {})),
    ]
    outcome = burst.advance(burst.start(*pair))
    assert outcome.nudge is not None
    assert (outcome.attempts, outcome.nudge.label) == (1, "Made.b")
    assert all(getattr(outcome.nudge, name) == options[name] for name in options if is_next)


def test_a_burst_ends_when_its_time_is_up(burst: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(step: t.Any) -> None:
        now[0] += 25

    run_id = burst.start(*(make_step(slow, f"s{n}") for n in range(5)))
    outcome = burst.advance(run_id)
    assert (outcome.attempts, outcome.status) == (3, Status.WAITING)
    assert burst.row(run_id).step == "s3"


def test_the_history_of_a_burst_tells_when_each_step_began(
    burst: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(step: t.Any) -> None:
        now[0] += 10

    run_id = burst.start(*(make_step(slow, f"s{n}") for n in range(3)))
    burst.advance(run_id)
    with burst.connect() as connection:
        statement = sa.select(step_runs.c.started_at).order_by(step_runs.c.id)
        first, second, third = connection.execute(statement).scalars()
    assert (second - first).total_seconds() == pytest.approx(10)
    assert (third - second).total_seconds() == pytest.approx(10)


def test_lost_claims_are_logged_quietly(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(step: t.Any) -> None:
        sqlite_stepping.take_over(step.run.id)

    with caplog.at_level(logging.INFO):
        assert sqlite_stepping.advance(sqlite_stepping.start(lose)).status is None
    assert level_of(caplog, "no longer held by this process") == "INFO"


def test_a_process_that_is_no_worker_counts_as_one_while_it_performs_runs(
    stepping: Stepping,
) -> None:
    stand_in(stepping.runtime)
    with stepping.connect() as connection:
        (living,) = reads.living_workers(connection)
        columns = (workers.c.seen_until, clock().label("now"))
        row = connection.execute(sa.select(*columns)).one()
    assert (living.id, living.pid) == (stepping.runtime.stand_in_id, os.getpid())
    assert living.queues == frozenset()
    assert 500 < (row.seen_until - row.now).total_seconds() <= 601


def test_a_child_without_a_run_tells_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hands, child = InHand(), os.getpid() + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child)
        hands.be_child(3)
    assert [hands.is_without_hand(child, run_id) for run_id in (1, 2)] == [True, True]
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child)
        hands.take(2)
    assert [hands.is_without_hand(child, run_id) for run_id in (1, 2)] == [True, False]
