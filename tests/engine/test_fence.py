"""One commit through the fence: checkpoints, lost claims, lost answers, swallowed errors."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import signal
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status, StepStatus
from flask_sequence.engine import connections, fence, patience, runner
from flask_sequence.engine.attempt import LEFT_ALONE
from flask_sequence.engine.fence import CHANGES, State
from flask_sequence.rows import moves
from tests.support.application import Effect, db
from tests.support.stepping import Stepping, make_sequence, make_step, note, note_by_core

FINISHED, RETRY = StepStatus.FINISHED, StepStatus.RETRY
LEFT_ALONE_ONCE = dataclasses.replace(LEFT_ALONE, attempts=1)


def end(step: t.Any) -> None:
    note("end")


# Checkpoints


def test_a_later_failure_starts_from_the_checkpoint(stepping: Stepping) -> None:
    def loop(step: t.Any) -> None:
        step.data.setdefault("lost", []).append(step.attempt)
        for number in range(step.data["at"], 4):
            note(f"{number}")
            step.data["at"] = number + 1
            if number == 2 and step.attempt == 1:
                raise ValueError("not yet")
            step.data.pop("lost", None)
            db.session.commit()

    run_id = stepping.start(loop, at=0)
    stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (row.status, dict(row.data), row.retries) == (Status.WAITING, {"at": 2}, 1)
    assert stepping.notes() == ["0", "1"]
    stepping.advance(run_id)
    assert stepping.row(run_id).status is Status.FINISHED
    assert stepping.notes() == ["0", "1", "2", "3"]
    assert stepping.history(run_id) == [("loop", 1, RETRY), ("loop", 2, FINISHED)]


@pytest.mark.parametrize(("change", "crashes"), [(1, 0), (None, 3)])
def test_a_checkpoint_is_progress_if_it_changed_the_data(
    sqlite_stepping: Stepping, change: int | None, crashes: int
) -> None:
    def save(step: t.Any) -> None:
        step.data["n"] = change
        db.session.commit()
        raise ValueError("later")

    run_id = sqlite_stepping.start(save, n=None)
    sqlite_stepping.set(run_id, crashes=3)
    sqlite_stepping.advance(run_id)
    assert sqlite_stepping.row(run_id).crashes == crashes


def test_what_comes_after_the_end_of_a_session_is_fenced(stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        step.data["kept"] = True
        note("taken back")
        db.session.flush()
        getattr(db.session, step.data["way"])()
        note(step.data["way"])
        if step.data["lose"]:
            db.session.close()
            stepping.cancel(step.run.id)
            note("lost")

    ways = ["rollback", "close", "remove", "reset"]
    for way in ways:
        row = stepping.run(body, way=way, lose=False)
        assert (row.status, row.data["kept"]) == (Status.FINISHED, True)
        stepping.run(body, way=way, lose=True)
    assert stepping.notes() == ways


def test_a_context_of_the_step_s_own_is_not_fenced(stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        step.data["n"] = 1
        with stepping.app.app_context():
            note("by itself")
            db.session.commit()
        raise ValueError

    row = stepping.run(make_step(body, max_retries=0))
    assert (row.status, dict(row.data), stepping.notes()) == (Status.FAILED, {}, ["by itself"])


def test_a_savepoint_is_no_checkpoint(stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        with db.session.begin_nested():
            note("inner")
            step.data["x"] = 1
        if step.attempt == 1:
            raise ValueError("not yet")

    run_id = stepping.start(body)
    stepping.advance(run_id)
    assert (stepping.notes(), dict(stepping.row(run_id).data)) == ([], {})
    stepping.advance(run_id)
    assert (stepping.notes(), stepping.row(run_id).version) == (["inner"], 4)


# The loss of the claim


@pytest.mark.parametrize("way", ["take_over", "cancel"])
@pytest.mark.parametrize("reads_first", [True, False])
def test_who_lost_the_claim_commits_nothing(
    stepping: Stepping, way: str, reads_first: bool
) -> None:
    child = make_sequence(end, name="Child")
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        if reads_first:
            db.session.scalars(sa.select(Effect)).all()
        if len(bodies) == 1:
            if stepping.dialect == "sqlite":
                db.session.rollback()  # A reader there keeps writers out.
            getattr(stepping, way)(step.run.id)
        note("lost")
        child.start()
        step.data["lost"] = True

    run_id = stepping.start(body, end)
    stepping.published.clear()
    assert stepping.advance(run_id).status is None
    row = stepping.row(run_id)
    assert (row.step, dict(row.data), bodies) == ("body", {}, [1])
    assert row.status is (Status.CANCELLED if way == "cancel" else Status.RUNNING)
    assert (stepping.notes(), stepping.history(run_id), stepping.published) == ([], [], [])


def test_a_lost_claim_that_shows_as_a_stale_snapshot(
    make_app: t.Callable[..., Flask], mariadb_url: str
) -> None:
    options = {"connect_args": {"init_command": "SET innodb_snapshot_isolation = ON"}}
    stepping = Stepping(make_app(mariadb_url, SQLALCHEMY_ENGINE_OPTIONS=options))
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        db.session.scalars(sa.select(Effect)).all()
        stepping.take_over(step.run.id)
        note("lost")

    assert stepping.advance(stepping.start(body)).status is None
    assert (bodies, stepping.notes()) == ([1], [])


@pytest.mark.parametrize("way", ["take_over", "cancel"])
def test_a_lost_claim_ends_the_step_at_its_checkpoint(stepping: Stepping, way: str) -> None:
    reached = []

    def body(step: t.Any) -> None:
        note("first")
        db.session.commit()
        getattr(stepping, way)(step.run.id)
        note("second")
        try:
            db.session.commit()
        except Exception:
            reached.append("swallowed")
        reached.append("after")

    run_id = stepping.start(body)
    assert stepping.advance(run_id).status is None
    assert (stepping.notes(), stepping.history(run_id), reached) == (["first"], [], [])


def test_a_lost_claim_that_is_swallowed_is_lost_all_the_same(stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        stepping.take_over(step.run.id)
        note("lost")
        with contextlib.suppress(BaseException):
            db.session.commit()
        db.session.rollback()
        note("lost, too")

    run_id = stepping.start(body)
    assert stepping.advance(run_id).status is None
    assert (stepping.notes(), stepping.history(run_id)) == ([], [])


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_failure_after_the_loss_of_the_claim_moves_nothing(
    sqlite_stepping: Stepping, error: type[BaseException]
) -> None:
    def body(step: t.Any) -> None:
        sqlite_stepping.take_over(step.run.id)
        raise error("no")

    run_id = sqlite_stepping.start(body)
    assert sqlite_stepping.advance(run_id).status is None
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.worker_id, row.error) == (Status.RUNNING, "other", None)
    assert sqlite_stepping.history(run_id) == []


def test_a_row_that_is_gone_is_left_alone(sqlite_stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        with sqlite_stepping.connect() as connection:
            connection.exec_driver_sql("DELETE FROM sequence_runs")
        note("lost")

    sqlite_stepping.advance(sqlite_stepping.start(body))
    assert sqlite_stepping.notes() == []


# The answer of a COMMIT that did not come


class CutError(Exception):
    """A connection that was cut, or a time limit, in the middle of a COMMIT."""


Answers = t.Callable[..., None]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Set what becomes of the next commits: "lost": done, and raises; "never": only raises."""

    def patch(stepping: Stepping, *planned: str | None, error: type[Exception] = CutError) -> None:
        with stepping.app.app_context():
            dialect = db.engine.dialect
        plan = collections.deque(planned)

        def cut(real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
            def call(*args: t.Any) -> t.Any:
                answer = plan.popleft() if plan else None
                result = None if answer == "never" else real(*args)
                if answer is not None:
                    raise error("cut")
                return result

            return call

        if stepping.dialect == "postgresql":  # a step's COMMIT goes along with its move
            monkeypatch.setattr(moves, "make_and_commit", cut(moves.make_and_commit))
            plan.popleft()  # the claim's
        else:
            monkeypatch.setattr(dialect, "do_commit", cut(dialect.do_commit))

    return patch


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("burst", [0, 60])
def test_a_step_whose_commit_went_through_is_not_done_twice(
    make_app: t.Callable[..., Flask], database_url: str, answers: Answers, steps: int, burst: int
) -> None:
    stepping = Stepping(make_app(database_url, SEQUENCE_BURST_SECONDS=burst))

    def body(step: t.Any) -> None:
        note("once")
        step.data["n"] += 1

    run_id = stepping.start(*(make_step(body, f"s{n}") for n in range(steps)), n=0)
    answers(stepping, None, "lost")
    outcome = stepping.advance(run_id)
    row = stepping.row(run_id)
    if steps == 2 and not burst:
        assert outcome.nudge is not None
        assert (outcome.nudge.version, row.step, row.status) == (row.version, "s1", Status.WAITING)
        stepping.advance(run_id)
        row = stepping.row(run_id)
    assert (row.status, dict(row.data)) == (Status.FINISHED, {"n": steps})
    assert stepping.notes() == ["once"] * steps
    assert len(stepping.history(run_id)) == steps


def test_a_step_whose_commit_did_not_go_through_is_done_again(
    stepping: Stepping, answers: Answers
) -> None:
    run_id = stepping.start(make_step(end, default_retry_delay=0), make_step(end, "last"))
    answers(stepping, None, "never")
    assert stepping.advance(run_id).status is Status.WAITING
    row = stepping.row(run_id)
    assert (row.step, row.retries, row.error, stepping.notes()) == ("end", 1, "CutError: cut", [])
    stepping.advance(run_id)
    assert (stepping.row(run_id).step, stepping.notes()) == ("last", ["end"])


def count(step: t.Any) -> None:
    step.data["bodies"] = step.data.get("bodies", 0) + 1


@pytest.mark.parametrize(("answer", "retries"), [("lost", 0), ("never", 1)])
def test_a_move_alone_without_an_answer(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch, answer: str, retries: int
) -> None:
    cut = [True]

    @contextlib.contextmanager
    def own_move(runtime: t.Any) -> t.Iterator[t.Any]:
        is_cut = bool(cut and cut.pop())
        if is_cut and answer == "never":
            raise CutError
        with connections.own_move(runtime) as connection:
            yield connection
        if is_cut:
            raise CutError

    monkeypatch.setattr(fence, "own_move", own_move)
    run_id = stepping.start(make_step(count, default_retry_delay=0))
    while stepping.advance(run_id).status is not Status.FINISHED:
        assert stepping.row(run_id).status is Status.WAITING
    row = stepping.row(run_id)
    assert (dict(row.data), row.attempt, row.retries) == ({"bodies": 1}, 1 + retries, retries)
    assert [entry[1] for entry in stepping.history(run_id)] == [*range(1, retries + 2)]


@pytest.mark.parametrize("way", ["take_over", "cancel"])
def test_who_lost_the_claim_moves_nothing_alone(stepping: Stepping, way: str) -> None:
    def body(step: t.Any) -> None:
        count(step)
        getattr(stepping, way)(step.run.id)

    run_id = stepping.start(body, end)
    assert stepping.advance(run_id) == LEFT_ALONE_ONCE
    row = stepping.row(run_id)
    assert (row.step, dict(row.data), stepping.history(run_id)) == ("body", {}, [])
    assert row.status is (Status.CANCELLED if way == "cancel" else Status.RUNNING)


@pytest.mark.parametrize("answer", ["lost", "never"])
@pytest.mark.parametrize("then", ["goes on", "raises", "last answer lost", "last never"])
def test_a_checkpoint_without_an_answer(
    stepping: Stepping, answers: Answers, answer: str, then: str
) -> None:
    def body(step: t.Any) -> None:
        if step.attempt > 1:
            note(f"again from {step.data['at']}")
            return
        note("checkpoint")
        step.data["at"] = 1
        try:
            db.session.commit()
        except CutError:
            db.session.rollback()
        note("after")
        step.data["at"] = 2
        if then == "raises":
            raise ValueError("after the checkpoint")

    run_id = stepping.start(make_step(body, default_retry_delay=0), end, at=0)
    last = {"last answer lost": "lost", "last never": "never"}.get(then)
    answers(stepping, None, answer, last)
    stepping.advance(run_id)
    row = stepping.row(run_id)
    saved = ["checkpoint"] if answer == "lost" else []
    if then in ("goes on", "last answer lost"):
        assert (row.step, dict(row.data), stepping.notes()) == ("end", {"at": 2}, [*saved, "after"])
        return
    assert (row.step, row.status, row.retries) == ("body", Status.WAITING, 1)
    assert (dict(row.data), stepping.notes()) == ({"at": len(saved)}, saved)
    stepping.advance(run_id)
    assert stepping.notes() == [*saved, f"again from {len(saved)}"]


def test_an_unknown_commit_of_a_run_that_was_taken_meanwhile(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> None:
    def read(runtime: t.Any, run_id: int) -> t.Any:
        sqlite_stepping.cancel(run_id)
        return real(runtime, run_id)

    real = patience.read_row
    monkeypatch.setattr(runner, "read_row", read)
    for steps in ((end,), (end, make_step(end, "next"))):
        run_id = sqlite_stepping.start(*steps)
        answers(sqlite_stepping, None, "never")
        assert sqlite_stepping.advance(run_id).status is None
        assert sqlite_stepping.row(run_id).status is Status.CANCELLED
    assert sqlite_stepping.notes() == []


@pytest.mark.parametrize("answer", ["lost", "never"])
def test_a_claim_without_an_answer(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch, answers: Answers, answer: str
) -> None:
    def claim(*args: t.Any, **kw: t.Any) -> t.Any:
        if answer == "lost":
            real(*args, **kw)
        raise CutError("cut")

    run_id = stepping.start(end)
    real = moves.claim
    if stepping.dialect in {"mysql", "mariadb"}:
        answers(stepping, answer)
    else:  # one statement, which commits itself
        monkeypatch.setattr(moves, "claim", claim)
    if answer == "lost":
        assert stepping.advance(run_id).status is Status.FINISHED
        assert stepping.notes() == ["end"]
        return
    with pytest.raises(CutError):
        stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (row.status, row.version) == (Status.WAITING, 0)


# Errors that are swallowed


def test_an_integrity_error_that_was_swallowed(postgresql_stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        note_by_core("before")
        with contextlib.suppress(sa.exc.IntegrityError):
            db.session.execute(sa.insert(Effect).values(id=1, note=None))
        step.data["moved"] = True

    run_id = postgresql_stepping.start(body, end)
    postgresql_stepping.advance(run_id)
    row = postgresql_stepping.row(run_id)
    assert (row.step, row.status, dict(row.data)) == ("body", Status.WAITING, {})
    assert "InFailedSqlTransaction" in row.error
    assert postgresql_stepping.notes() == []


def test_an_integrity_error_under_a_savepoint_is_harmless(stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        note_by_core("before")
        with contextlib.suppress(sa.exc.IntegrityError), db.session.begin_nested():
            db.session.execute(sa.insert(Effect).values(id=1, note=None))

    assert stepping.run(body).status is Status.FINISHED
    assert stepping.notes() == ["before"]


@pytest.mark.parametrize("behind", [True, False], ids=["behind the fence", "before it"])
@pytest.mark.parametrize("target", ["session", "engine"])
def test_a_listener_of_the_user_that_swallows_a_failure(
    stepping: Stepping, behind: bool, target: str
) -> None:
    def swallow(source: t.Any) -> None:
        with contextlib.suppress(sa.exc.DBAPIError):
            source.execute(sa.text("SELECT nothing FROM nowhere"))

    def body(step: t.Any) -> None:
        if behind:
            db.session.connection()  # The fence is there from now on.
        if target == "session":
            sa.event.listen(db.session(), "before_commit", swallow)
        note("with the move")

    with stepping.app.app_context():
        engine = db.engine
    run_id = stepping.start(make_step(body, max_retries=0), end)
    if target == "engine":
        sa.event.listen(engine, "commit", swallow, insert=not behind)
    try:
        stepping.advance(run_id)
    finally:
        if target == "engine":
            sa.event.remove(engine, "commit", swallow)
    moved = stepping.row(run_id).step == "end"
    assert stepping.notes() == ["with the move"] * moved
    assert stepping.row(run_id).status is not Status.RUNNING
    assert moved or stepping.dialect == "postgresql"


def test_a_commit_that_came_back_without_the_fence(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(step: t.Any) -> None:
        note("lost")
        monkeypatch.setattr(db.session(), "commit", db.session().rollback)

    run_id = sqlite_stepping.start(make_step(body, max_retries=0))
    assert sqlite_stepping.advance(run_id).status is Status.FAILED
    assert sqlite_stepping.row(run_id).error.startswith("TransactionDoomedError: ")
    assert sqlite_stepping.notes() == []


# COMMIT itself


AT_COMMIT = """
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON effects
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()
"""


def test_a_trigger_that_fails_at_commit_is_the_steps_error(postgresql_stepping: Stepping) -> None:
    with postgresql_stepping.connect() as connection:
        connection.exec_driver_sql(AT_COMMIT.format("PERFORM 1 / 0;"))
    row = postgresql_stepping.run(make_step(end, max_retries=0))
    assert (row.status, postgresql_stepping.notes()) == (Status.FAILED, [])
    assert "division by zero" in row.error

    def body(step: t.Any) -> None:
        note("of an except block")
        try:
            raise KeyError("handled")
        except KeyError:
            db.session.commit()

    row = postgresql_stepping.run(make_step(body, max_retries=0))
    assert (row.status, postgresql_stepping.notes()) == (Status.FAILED, [])
    assert "division by zero" in row.error


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupt_at_commit_is_told_as_it_is(postgresql_stepping: Stepping) -> None:
    """As a soft time limit: what went to the server may go through, and is done once."""

    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    performed = []

    def body(step: t.Any) -> None:
        performed.append(step.attempt)
        note("once")
        db.session.flush()
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    with postgresql_stepping.connect() as connection:
        connection.exec_driver_sql(AT_COMMIT.format("PERFORM pg_sleep(1);"))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        run_id = postgresql_stepping.start(make_step(body, max_retries=0))
        postgresql_stepping.advance(run_id)
    finally:
        signal.signal(signal.SIGALRM, before)
    row = postgresql_stepping.row(run_id)
    if row.status is Status.FAILED:
        assert (row.error, postgresql_stepping.notes()) == ("InterruptError", [])
    else:
        assert (row.status, postgresql_stepping.notes()) == (Status.FINISHED, ["once"])
    assert performed == [1]


# A second bind


def test_a_second_bind_is_at_least_once_with_a_warning(
    make_app: t.Callable[..., Flask],
    database_url: str,
    tmp_path: t.Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    stepping = Stepping(make_app(database_url, SQLALCHEMY_BINDS={"other": other}))
    with stepping.app.app_context():
        engine = db.engines["other"]
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE there (note TEXT)")

    def body(step: t.Any) -> None:
        if step.data["lose"]:
            stepping.cancel(step.run.id)
        for _ in range(2):
            note("here")
            statement = sa.text("INSERT INTO there VALUES ('there')")
            db.session.execute(statement, bind_arguments={"bind": engine})
            step.data["n"] += 1
            db.session.commit()

    def there() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM there").scalar_one())

    step = make_step(body, f"on_{stepping.dialect}")
    row = stepping.run(step, n=0, lose=False)
    assert (row.status, dict(row.data)) == (Status.FINISHED, {"n": 2, "lose": False})
    assert (stepping.notes(), there()) == (["here", "here"], 2)
    assert caplog.text.count("at least once") == 1
    row = stepping.run(step, n=0, lose=True)
    assert (row.status, row.data["n"]) == (Status.CANCELLED, 0)
    assert (stepping.notes(), there()) == (["here", "here"], 2)


def test_a_second_bind_needs_no_second_connection(
    make_app: t.Callable[..., Flask], postgresql_url: str, tmp_path: t.Any
) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    narrow = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
    app = make_app(
        postgresql_url, SQLALCHEMY_BINDS={"other": other}, SQLALCHEMY_ENGINE_OPTIONS=narrow
    )
    stepping = Stepping(app)
    with app.app_context():
        engine = db.engines["other"]

    def body(step: t.Any) -> None:
        note("here")
        written = sa.text("CREATE TABLE there (note TEXT)")
        db.session.execute(written, bind_arguments={"bind": engine})
        step.data["n"] = 1

    row = stepping.run(make_step(body, max_retries=0))
    assert (row.status, row.data["n"], row.attempt) == (Status.FINISHED, 1, 1)
    assert stepping.notes() == ["here"]


def test_a_claim_that_is_lost_between_two_binds(
    make_app: t.Callable[..., Flask], postgresql_url: str, tmp_path: t.Any
) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    stepping = Stepping(make_app(postgresql_url, SQLALCHEMY_BINDS={"other": other}))
    with stepping.app.app_context():
        engine = db.engines["other"]

    def body(step: t.Any) -> None:
        note("here")
        written = sa.text("CREATE TABLE there (note TEXT)")
        db.session.execute(written, bind_arguments={"bind": engine})
        sa.event.listen(engine, "commit", lambda _: stepping.cancel(step.run.id), once=True)

    run_id = stepping.start(body, end)
    assert stepping.advance(run_id) is not LEFT_ALONE
    row = stepping.row(run_id)
    # A session commits its binds in any order: before the loss, or after it.
    assert stepping.notes() in ([], ["here"])
    assert (row.status, row.step, stepping.history(run_id)) == (Status.CANCELLED, "body", [])


def test_each_state_says_what_follows_on_it() -> None:
    assert set(CHANGES) == set(State)
    assert CHANGES[State.MOVED] == CHANGES[State.LOST] == frozenset()
