"""Every way to a COMMIT leads through the fence: no row twice, and none without its data."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from flask_sequence import Status, Step
from flask_sequence.engine.doors import Doors
from flask_sequence.engine.fence import CHANGES, State
from tests.support.application import Effect, db
from tests.support.stepping import Stepping, make_step, note, note_by_core

ROWS = 3


def by_session() -> None:
    db.session.commit()


def by_root() -> None:
    transaction = db.session().get_transaction()
    assert transaction is not None
    transaction.commit()


def by_connection() -> None:
    db.session.connection().commit()
    db.session.close()


def by_its_transaction() -> None:
    transaction = db.session.connection().get_transaction()
    assert transaction is not None
    transaction.commit()
    db.session.close()


def by_another_thread() -> None:
    connection = db.session.connection()
    errors: list[BaseException] = []

    def commit() -> None:
        try:
            connection.commit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    thread.join()
    db.session.close()
    if errors:
        raise errors[0]


def by_a_listener() -> None:
    def commit(session: t.Any) -> None:
        session.connection().commit()

    sa.event.listen(db.session(), "before_commit", commit, once=True)
    with contextlib.suppress(sa.exc.InvalidRequestError):
        db.session.commit()
    db.session.close()


WAYS = [by_session, by_root, by_connection, by_its_transaction, by_a_listener]


def no_savepoint() -> None:
    pass


def released() -> None:
    with db.session.begin_nested():
        db.session.flush()


def left_open() -> None:
    db.session.begin_nested()


def left_open_by_connection() -> None:
    db.session.connection().begin_nested()


SAVEPOINTS = [no_savepoint, released, left_open, left_open_by_connection]


@pytest.mark.parametrize("taken", [False, True], ids=["held", "taken over"])
@pytest.mark.parametrize("savepoint", SAVEPOINTS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_row_and_its_data_are_one_commit(
    stepping: Stepping,
    way: t.Callable[[], None],
    savepoint: t.Callable[[], None],
    taken: bool,
) -> None:
    commits = []

    def body(step: t.Any) -> None:
        for number in range(step.data["n"], ROWS):
            if taken and number == 1:
                db.session.close()
                stepping.take_over(step.run.id)
            note(f"{number}")
            db.session.flush()
            savepoint()
            step.data["n"] = number + 1
            way()
            commits.append(number)
            if number == 0 and step.attempt == 1:
                raise ValueError("after the first commit")

    run_id = stepping.start(make_step(body, default_retry_delay=0), n=0)
    while stepping.advance(run_id).status is Status.WAITING:
        pass
    row = stepping.row(run_id)
    assert commits[:1] == [0]
    assert stepping.notes() == [str(number) for number in range(row.data["n"])]
    assert row.data["n"] == (1 if taken else ROWS)
    assert row.status is (Status.RUNNING if taken else Status.FINISHED)


def in_a_block_whose_savepoint_is_open() -> None:
    with db.session.begin():
        note("in the block")
        db.session.begin_nested()


def inside_the_block_of_a_savepoint() -> None:
    with db.session.begin_nested():
        note("in the block")
        db.session.commit()


@pytest.mark.parametrize("taken", [False, True], ids=["held", "taken over"])
@pytest.mark.parametrize(
    "commit", [in_a_block_whose_savepoint_is_open, inside_the_block_of_a_savepoint]
)
def test_a_commit_by_a_block_is_a_checkpoint(
    stepping: Stepping, commit: t.Callable[[], None], taken: bool
) -> None:
    def body(step: t.Any) -> None:
        if taken:
            stepping.take_over(step.run.id)
        step.data["n"] = 1
        commit()
        raise ValueError("after the block")

    run_id = stepping.start(make_step(body, max_retries=0), n=0)
    stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (row.data["n"], stepping.notes()) == ((0, []) if taken else (1, ["in the block"]))


@pytest.mark.parametrize("taken", [False, True], ids=["held", "taken over"])
def test_a_thread_that_commits_the_steps_connection(
    postgresql_stepping: Stepping, taken: bool
) -> None:
    def body(step: t.Any) -> None:
        if taken:
            postgresql_stepping.take_over(step.run.id)
        step.data["n"] = 1
        note("written")
        db.session.flush()
        by_another_thread()
        raise ValueError("after the commit")

    run_id = postgresql_stepping.start(make_step(body, max_retries=0), n=0)
    postgresql_stepping.advance(run_id)
    row = postgresql_stepping.row(run_id)
    # It has no app context there: what it commits is let through with its data, or not at all.
    assert len(postgresql_stepping.notes()) == row.data["n"]
    assert row.data["n"] == 0 if taken else True


@pytest.mark.parametrize("taken", [False, True], ids=["held", "taken over"])
def test_two_phases_are_fenced(
    make_app: t.Callable[..., Flask],
    mariadb_url: str,
    taken: bool,
) -> None:
    stepping = Stepping(make_app(mariadb_url))

    def body(step: t.Any) -> None:
        db.session().twophase = True
        if taken:
            stepping.take_over(step.run.id)
        step.data["n"] = 1
        note("in two phases")
        db.session.commit()
        if step.attempt == 1:
            raise ValueError("after the commit")

    run_id = stepping.start(make_step(body, max_retries=0), n=0)
    stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (row.data["n"], stepping.notes()) == ((0, []) if taken else (1, ["in two phases"]))


@pytest.mark.parametrize("name", ["prepare_twophase", "commit_twophase"])
def test_of_two_phases_none_sends_a_commit_along(
    postgresql_stepping: Stepping, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With psycopg a COMMIT beside PREPARE TRANSACTION would be the first phase, and the last."""
    ways: list[bool] = []

    def body(step: t.Any) -> None:
        connection = db.session.connection()
        monkeypatch.setattr(Doors, "to_commit", lambda *_, along: ways.append(along))
        rest = {"prepare_twophase": ("x",), "commit_twophase": ("x", False)}[name]
        getattr(connection.dispatch, name)(connection, *rest)
        monkeypatch.undo()

    assert postgresql_stepping.run(body).status is Status.FINISHED
    assert ways == [False]


@pytest.mark.parametrize("text", ["COMMIT", "Rollback WORK", "SELECT 1; COMMIT", ";COMMIT"])
def test_a_commit_as_text_is_refused(stepping: Stepping, text: str) -> None:
    def body(step: t.Any) -> None:
        note("written")
        db.session.flush()
        db.session.connection().exec_driver_sql(text)

    row = stepping.run(make_step(body, max_retries=0))
    assert (row.status, stepping.notes()) == (Status.FAILED, [])
    assert "db.session.commit()" in row.error


@pytest.mark.parametrize("text", ["BEGIN", "SET autocommit = 1", "TRUNCATE effect", "/*!COMMIT*/"])
def test_what_mariadb_commits_by_itself_is_refused(mariadb_stepping: Stepping, text: str) -> None:
    def body(step: t.Any) -> None:
        note("written")
        db.session.flush()
        db.session.execute(sa.text(text))

    row = mariadb_stepping.run(make_step(body, max_retries=0))
    assert (row.status, mariadb_stepping.notes()) == (Status.FAILED, [])
    assert "db.engine.begin()" in row.error


@pytest.mark.parametrize("text", ["SAVEPOINT a", "ROLLBACK TO SAVEPOINT a", "RELEASE SAVEPOINT a"])
def test_savepoints_as_text_are_not(stepping: Stepping, text: str) -> None:
    def body(step: t.Any) -> None:
        note_by_core("kept")
        db.session.execute(sa.text("SAVEPOINT a"))
        db.session.execute(sa.text(text))

    assert stepping.run(body).status is Status.FINISHED
    assert stepping.notes() == ["kept"]


def test_autocommit_in_a_step_is_refused(postgresql_stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        db.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        note("by itself")
        db.session.flush()

    row = postgresql_stepping.run(make_step(body, max_retries=0))
    assert (row.status, postgresql_stepping.notes()) == (Status.FAILED, [])
    assert "AUTOCOMMIT" in row.error


def test_a_session_with_options_of_its_own_is_the_same_bind(
    stepping: Stepping, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(step: t.Any) -> None:
        engine = db.engine.execution_options(logging_token="step")
        monkeypatch.setattr(db.session(), "get_bind", lambda *_, **__: engine)
        note("once")
        step.data["n"] += 1
        db.session.commit()

    row = stepping.run(body, n=0)
    assert (row.status, row.data["n"], stepping.notes()) == (Status.FINISHED, 1, ["once"])
    assert "more than one bind" not in caplog.text


@pytest.mark.parametrize("text", ["SELECT 1", "/* all\nof it */\n-- now\n select 1"])
def test_reading_elsewhere_leaves_a_step_exactly_once(
    make_app: t.Callable[..., Flask],
    postgresql_url: str,
    tmp_path: t.Any,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    other = f"sqlite:///{tmp_path / 'replica.sqlite'}"
    stepping = Stepping(make_app(postgresql_url, SQLALCHEMY_BINDS={"replica": other}))

    def body(step: t.Any) -> None:
        bind = {"bind": db.engines["replica"]}
        assert db.session.scalar(sa.text(text), bind_arguments=bind) == 1
        note("written")

    assert stepping.run(body).status is Status.FINISHED
    assert "more than one bind" not in caplog.text


def test_a_child_that_a_step_forks_moves_nothing(
    postgresql_stepping: Stepping, tmp_path: t.Any
) -> None:
    ended = []
    log = logging.FileHandler(tmp_path / "log")

    def body(step: t.Any) -> None:
        child = os.fork()
        if child == 0:
            raise ValueError("in the child")
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    logging.getLogger("flask_sequence").addHandler(log)
    try:
        row = postgresql_stepping.run(body)
    finally:
        logging.getLogger("flask_sequence").removeHandler(log)
        log.close()
    assert (row.status, row.retries, ended) == (Status.FINISHED, 0, [70])
    told = (tmp_path / "log").read_text()
    assert "has forked this process" in told
    assert "ValueError: in the child" in told


@pytest.fixture
def by_thread(stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> Stepping:
    """Each thread has a ``db.session`` of its own."""
    session = db._make_scoped_session({"scopefunc": threading.get_ident})
    monkeypatch.setattr(db, "session", session)
    return stepping


@pytest.mark.parametrize("way", ["async", "thread"])
@pytest.mark.parametrize("flushes", [True, False])
def test_a_session_by_thread_is_the_steps_in_every_thread(
    by_thread: Stepping, way: str, flushes: bool
) -> None:
    def write() -> None:
        db.session.add(Effect(note="there"))
        if flushes:
            db.session.flush()

    async def write_async(step: t.Any) -> None:
        write()

    class Async(Step[t.Any]):
        perform = write_async
        name = "body"
        max_retries = 0

    def write_in_thread(step: t.Any) -> None:
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(write,))
        thread.start()
        thread.join()

    body = Async if way == "async" else make_step(write_in_thread, "body", max_retries=0)
    row = by_thread.run(body, make_step(lambda step: None, "end"))
    assert (row.status, by_thread.notes()) == (Status.WAITING, ["there"])
    assert row.step == "end"


def test_sessions_of_several_threads_are_refused(by_thread: Stepping) -> None:
    def body(step: t.Any) -> None:
        note("here")
        db.session.flush()
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(read,))
        thread.start()
        thread.join()

    def read() -> None:
        db.session.execute(sa.select(Effect.id))

    row = by_thread.run(make_step(body, max_retries=0))
    assert (row.status, by_thread.notes()) == (Status.FAILED, [])
    assert "db.session.remove()" in row.error


@pytest.mark.parametrize("way", ["session", "connection", "db.session"])
@pytest.mark.parametrize("ends", [None, ValueError])
def test_a_thread_that_outlives_its_step_commits_nothing(
    stepping: Stepping, way: str, ends: type[Exception] | None
) -> None:
    over, errors, threads = threading.Event(), list[str](), list[threading.Thread]()

    def late(session: t.Any) -> None:
        over.wait(30)
        try:
            session.add(Effect(note="late"))
            session.flush()
            (session.connection() if way == "connection" else session).commit()
        except BaseException as error:
            errors.append(type(error).__name__)
        session.close()
        db.session.remove()

    def body(step: t.Any) -> None:
        session = db.session if way == "db.session" else db.session()
        run = contextvars.copy_context().run
        threads.append(threading.Thread(target=run, args=(late, session)))
        threads[-1].start()
        if ends is not None:
            raise ends

    row = stepping.run(make_step(body, max_retries=0))
    over.set()
    threads[0].join()
    assert row.status is (Status.FINISHED if ends is None else Status.FAILED)
    assert (stepping.notes(), errors) == ([], ["ClaimLost"])


@pytest.mark.parametrize("way", ["commit", "rollback", "flush", "exit"])
def test_a_child_that_a_step_forks_has_no_part_in_its_transaction(
    stepping: Stepping, way: str
) -> None:
    ended = []

    def body(step: t.Any) -> None:
        note("of the parent")
        db.session.flush()
        child = os.fork()
        if child == 0:
            try:
                if way == "flush":
                    note("of the child")
                if way != "exit":
                    getattr(db.session, way)()
            except BaseException:
                os._exit(3)
            os._exit(4)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert stepping.run(body).status is Status.FINISHED
    assert (stepping.notes(), ended) == (["of the parent"], [4 if way == "exit" else 3])


def test_a_child_that_a_step_forks_makes_no_checkpoint_of_its_own(stepping: Stepping) -> None:
    ended = []

    def body(step: t.Any) -> None:
        child = os.fork()
        if child == 0:
            try:
                for engine in db.engines.values():
                    engine.dispose(close=False)
                note("of the child")
                db.session.commit()
            except BaseException as error:
                os._exit(3 if type(error).__name__ == "ClaimLost" else 5)
            os._exit(4)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        note("of the parent")

    assert stepping.run(body).status is Status.FINISHED
    assert (stepping.notes(), ended) == (["of the parent"], [3])


def test_a_session_of_the_steps_own_is_not_the_steps(stepping: Stepping) -> None:
    """It commits by itself, whatever becomes of the step."""

    def body(step: t.Any) -> None:
        stepping.take_over(step.run.id)
        with Session(db.engine) as own:
            own.add(Effect(note="by itself"))
            own.commit()
        note("of the step")

    run_id = stepping.start(body)
    assert stepping.advance(run_id).status is None
    assert stepping.notes() == ["by itself"]


def test_the_states_of_the_fence() -> None:
    assert set(CHANGES) == set(State)
    ends = {state for state, changes in CHANGES.items() if not changes}
    assert ends == {State.MOVED, State.LOST}
    assert State.MOVED not in CHANGES[State.OPEN]  # only by a COMMIT that was sent
