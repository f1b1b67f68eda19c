"""How an attempt ends that does not succeed: retried, failed, interrupted, or begun again."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import logging
import pickle
import random
import signal
import sqlite3
import threading
import time
import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from celery.exceptions import WorkerShutdown
from flask import Flask
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status, StepStatus
from flask_sequence.engine import attempt, claiming, failing, patience
from flask_sequence.engine.attempt import FRESH_TRIES
from flask_sequence.engine.claiming import Message, redirect_sign
from flask_sequence.engine.connections import own_move
from flask_sequence.engine.runner import advance
from flask_sequence.errors import FailInterrupt
from flask_sequence.rows import moves
from flask_sequence.rows.models import runs, step_runs
from flask_sequence.rows.moves import Move
from tests.support.application import Effect, db
from tests.support.logs import level_of
from tests.support.stepping import (
    Body,
    Stepping,
    be_worker,
    make_sequence,
    make_step,
    note,
    note_by_core,
)
from tests.support.waiting import wait_until

RETRY, FAILED = StepStatus.RETRY, StepStatus.FAILED


def delay_of(row: t.Any) -> float:
    return float((row.due_at - row.updated_at).total_seconds())


def end(step: t.Any) -> None:
    note("end")


def raising(error: BaseException) -> Body:
    def body(step: t.Any) -> None:
        note("lost")
        step.data["lost"] = True
        raise error

    return body


# Retries


def test_a_failing_step_is_tried_again_and_then_fails(stepping: Stepping) -> None:
    step = make_step(raising(ValueError("no\n  good")), max_retries=2, retry_backoff=3)
    run_id = stepping.start(step, end, kept=1)
    for retries, delay in ((1, 3), (2, 6)):
        outcome = stepping.advance(run_id)
        row = stepping.row(run_id)
        assert (outcome.status, outcome.error) == (Status.WAITING, None)
        assert (row.status, row.step, row.retries) == (Status.WAITING, "body", retries)
        assert (row.worker_id, row.pid, row.attempt) == (None, None, retries)
        assert delay_of(row) == pytest.approx(delay, abs=0.5)
        assert (outcome.nudge is None) == (delay > 5)
        if outcome.nudge:
            assert (outcome.nudge.countdown, outcome.nudge.version) == (3, row.version)
    outcome = stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (outcome.status, outcome.nudge) == (Status.FAILED, None)
    assert isinstance(outcome.error, ValueError)
    assert (row.status, row.step, row.due_at) == (Status.FAILED, "body", None)
    assert (row.error, dict(row.data)) == ("ValueError: no good", {"kept": 1})
    assert stepping.notes() == []
    assert stepping.history(run_id) == [("body", 1, RETRY), ("body", 2, RETRY), ("body", 3, FAILED)]
    with stepping.connect() as connection:
        kept = connection.execute(sa.select(step_runs)).all()
    for row in kept:
        assert row.error == "ValueError: no good"
        assert row.traceback.startswith("Traceback (most recent call last)")
        assert row.traceback.endswith("ValueError: no\n  good\n")
        assert row.worker == stepping.runtime.label
        assert row.started_at <= row.finished_at


def test_a_failed_run_goes_on_from_its_failed_step(stepping: Stepping) -> None:
    def flaky(step: t.Any) -> None:
        note(f"flaky {step.attempt}")
        if step.attempt == 1:
            raise ValueError("no")

    run_id = stepping.start(end, make_step(flaky, max_retries=0), make_step(end, "last"))
    stepping.advance(run_id)
    assert stepping.advance(run_id).status is Status.FAILED
    with stepping.app.app_context():
        db.session.get_one(SequenceRun, run_id).retry()
        db.session.commit()
    for _ in range(2):
        stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (row.status, row.error) == (Status.FINISHED, None)
    assert stepping.notes() == ["end", "flaky 2", "end"]


@pytest.mark.parametrize(
    ("options", "error", "status", "delay"),
    [
        ({}, ValueError(), Status.WAITING, 1),
        ({"autoretry_for": (KeyError,)}, ValueError(), Status.FAILED, None),
        ({"autoretry_for": (KeyError,)}, KeyError("k"), Status.WAITING, 1),
        ({"dont_autoretry_for": (ValueError,)}, UnicodeError(), Status.FAILED, None),
        ({"max_retries": 0}, ValueError(), Status.FAILED, None),
        ({"max_retries": None}, ValueError(), Status.WAITING, 1),
        ({"retry_backoff": False}, ValueError(), Status.WAITING, 0),
        ({"retry_backoff": 900}, ValueError(), Status.WAITING, 600),
        ({"retry_backoff": 50, "retry_backoff_max": 20}, ValueError(), Status.WAITING, 20),
        ({"default_retry_delay": 77}, ValueError(), Status.WAITING, 77),
        ({}, SystemExit(3), Status.WAITING, 1),
        ({}, GeneratorExit(), Status.WAITING, 1),
        ({"autoretry_for": (ValueError,)}, SystemExit(), Status.FAILED, None),
        ({"autoretry_for": (SystemExit,)}, SystemExit(), Status.WAITING, 1),
        ({"dont_autoretry_for": (SystemExit,)}, SystemExit(), Status.FAILED, None),
    ],
    ids=str,
)
def test_the_options_of_a_retry(
    sqlite_stepping: Stepping,
    options: dict[str, t.Any],
    error: BaseException,
    status: Status,
    delay: float | None,
) -> None:
    row = sqlite_stepping.run(make_step(raising(error), **options))
    assert row.status is status
    assert row.error.startswith(type(error).__name__)
    if delay is not None:
        assert delay_of(row) == pytest.approx(delay, abs=0.5)


def test_the_number_of_retries_of_the_application(
    make_app: t.Callable[..., Flask], sqlite_url: str
) -> None:
    for number, statuses in ((1, [Status.WAITING, Status.FAILED]), (None, [Status.WAITING] * 3)):
        stepping = Stepping(make_app(sqlite_url, SEQUENCE_MAX_RETRIES=number))
        run_id = stepping.start(raising(ValueError()))
        assert [stepping.advance(run_id).status for _ in statuses] == statuses


# Interrupts


def test_retry_interrupt(sqlite_stepping: Stepping) -> None:
    def retry(step: t.Any) -> None:
        note("lost")
        try:
            step.retry(**step.data)
        except Exception:
            note("swallowed")

    def handles(step: t.Any) -> None:
        try:
            raise KeyError("k")
        except KeyError:
            step.retry()

    def reasons(step: t.Any) -> None:
        step.retry(exc=OSError("gone"))

    def long_reasons(step: t.Any) -> None:
        step.retry(exc=OSError("x" * 2000))

    plain = sqlite_stepping.run(make_step(retry, default_retry_delay=9))
    assert (plain.status, plain.retries, delay_of(plain)) == (Status.WAITING, 1, 9)
    later = sqlite_stepping.run(retry, countdown=33)
    assert delay_of(later) == pytest.approx(33, abs=0.5)
    assert sqlite_stepping.run(handles).error == "KeyError: 'k'"
    assert sqlite_stepping.run(reasons).error == "OSError: gone"
    # It is a retry whatever the exception, and counts as one.
    narrow = make_step(reasons, autoretry_for=(KeyError,), max_retries=1)
    run_id = sqlite_stepping.start(narrow)
    assert sqlite_stepping.advance(run_id).status is Status.WAITING
    outcome = sqlite_stepping.advance(run_id)
    assert (outcome.status, type(outcome.error)) == (Status.FAILED, OSError)
    used_up = sqlite_stepping.run(make_step(retry, max_retries=0), countdown=1)
    told = "self.retry() was called with no retry left; max_retries is 0"
    assert (used_up.status, used_up.error) == (Status.FAILED, told)
    with_reason = sqlite_stepping.run(make_step(reasons, max_retries=0))
    assert with_reason.error == f"OSError: gone ({told})"
    sqlite_stepping.runtime.settings = dataclasses.replace(
        sqlite_stepping.runtime.settings, max_retries=0
    )
    told = "self.retry() was called with no retry left; SEQUENCE_MAX_RETRIES is 0"
    assert sqlite_stepping.run(long_reasons).error == f"OSError: {'x' * 918}… ({told})"
    assert sqlite_stepping.notes() == []


def test_fail_interrupt(stepping: Stepping) -> None:
    def fail(step: t.Any) -> None:
        note("saved")
        db.session.commit()
        note("lost")
        with contextlib.suppress(Exception):
            step.fail(step.data["reason"])

    run_id = stepping.start(make_step(fail), reason="out of\n stock \x1b[31m")
    outcome = stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (outcome.status, row.status) == (Status.FAILED, Status.FAILED)
    assert isinstance(outcome.error, FailInterrupt)
    assert row.error == "out of stock \\x1b[31m"
    assert stepping.notes() == ["saved"]
    assert stepping.history(run_id) == [("fail", 1, FAILED)]
    assert stepping.run(make_step(fail), reason="").error == "self.fail()"


def test_finish_interrupt(stepping: Stepping) -> None:
    def finish(step: t.Any) -> None:
        note("kept")
        step.data["done"] = True
        with contextlib.suppress(Exception):
            step.finish()

    run_id = stepping.start(finish, end)
    outcome = stepping.advance(run_id)
    row = stepping.row(run_id)
    assert (outcome.status, outcome.nudge) == (Status.FINISHED, None)
    assert (row.status, row.step, dict(row.data)) == (Status.FINISHED, "finish", {"done": True})
    assert stepping.notes() == ["kept"]


@pytest.mark.parametrize("way", ["retry", "fail", "finish"])
def test_an_interrupt_that_is_swallowed(sqlite_stepping: Stepping, way: str) -> None:
    def swallow(step: t.Any) -> None:
        try:
            step.fail("sold out") if way == "fail" else getattr(step, way)()
        except BaseException:
            note("after")

    row = sqlite_stepping.run(make_step(swallow, default_retry_delay=9), end)
    assert (row.step, row.status, row.error, sqlite_stepping.notes()) == {
        "retry": ("swallow", Status.WAITING, "RetryInterrupt: self.retry()", []),
        "fail": ("swallow", Status.FAILED, "sold out", []),
        "finish": ("swallow", Status.FINISHED, None, ["after"]),
    }[way]


def after_it(step: t.Any) -> None:
    try:
        step.end()
    except BaseException:
        raise OSError("gone") from None


def in_a_group(step: t.Any) -> None:
    try:
        step.end()
    except BaseException as error:
        raise BaseExceptionGroup("wrapped", [error]) from error


def in_a_task_group(step: t.Any) -> None:
    async def end() -> None:
        step.end()

    async def perform() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(end())

    asyncio.run(perform())


@pytest.mark.parametrize("way", ["retry", "fail", "finish"])
@pytest.mark.parametrize("wrap", [after_it, in_a_group, in_a_task_group])
def test_an_interrupt_holds_however_it_is_wrapped(
    sqlite_stepping: Stepping, wrap: t.Callable[[t.Any], None], way: str
) -> None:
    def wrapped(step: t.Any) -> None:
        note("before")
        step.end = lambda: step.fail("sold out") if way == "fail" else getattr(step, way)()
        wrap(step)

    row = sqlite_stepping.run(make_step(wrapped, default_retry_delay=9), end)
    assert (row.step, row.status, sqlite_stepping.notes()) == {
        "retry": ("wrapped", Status.WAITING, []),
        "fail": ("wrapped", Status.FAILED, []),
        "finish": ("wrapped", Status.FINISHED, ["before"]),
    }[way]


# Exceptions that end processes, and strange ones


def test_an_interrupt_of_the_process_goes_before_an_end_that_was_asked_for(
    sqlite_stepping: Stepping,
) -> None:
    def body(step: t.Any) -> None:
        try:
            step.finish()
        except BaseException:
            raise KeyboardInterrupt from None

    run_id = sqlite_stepping.start(body)
    with pytest.raises(KeyboardInterrupt):
        sqlite_stepping.advance(run_id)
    assert sqlite_stepping.row(run_id).status is Status.WAITING


@pytest.mark.parametrize("in_worker", [True, False])
def test_ctrl_c_in_a_step(sqlite_stepping: Stepping, in_worker: bool) -> None:
    if in_worker:
        be_worker(sqlite_stepping.app)
    run_id = sqlite_stepping.start(raising(KeyboardInterrupt()))
    if in_worker:
        assert sqlite_stepping.advance(run_id).status is Status.WAITING
    else:
        with pytest.raises(KeyboardInterrupt):
            sqlite_stepping.advance(run_id)
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.worker_id, row.retries) == (Status.WAITING, None, int(in_worker))
    assert len(sqlite_stepping.history(run_id)) == int(in_worker)
    assert sqlite_stepping.notes() == []


@pytest.mark.parametrize("when", ["in the step", "after the commit"])
def test_a_shutdown_hands_the_run_back(
    make_app: t.Callable[..., Flask], sqlite_url: str, when: str
) -> None:
    class ShutdownError(Exception):
        pass

    def body(step: t.Any) -> None:
        note("body")
        if when == "in the step":
            stop()
        sa.event.listen(db.session(), "after_commit", stop)

    def stop(*_: t.Any) -> None:
        worker.stop_flag[0] = 1
        raise ShutdownError

    stepping = Stepping(make_app(sqlite_url, SEQUENCE_BURST_SECONDS=60))
    worker = be_worker(stepping.app)
    run_id = stepping.start(body, end)
    with pytest.raises(ShutdownError):
        stepping.advance(run_id, is_shutdown=lambda error: isinstance(error, ShutdownError))
    row = stepping.row(run_id)
    committed = when == "after the commit"
    assert (row.status, row.worker_id, row.retries) == (Status.WAITING, None, 0)
    assert row.step == ("end" if committed else "body")
    assert stepping.notes() == ["body"] * committed


def test_a_worker_that_is_asked_to_stop_goes_on_with_no_further_step(
    make_app: t.Callable[..., Flask], sqlite_url: str
) -> None:
    stepping = Stepping(make_app(sqlite_url, SEQUENCE_BURST_SECONDS=60))
    worker = be_worker(stepping.app)

    def stop(step: t.Any) -> None:
        worker.stop_flag[0] = 1

    row = stepping.run(make_step(lambda step: None, "first"), stop, end)
    assert (row.status, row.step, row.worker_id) == (Status.WAITING, "end", None)


def test_a_shutdown_that_a_step_raises_itself_counts(sqlite_stepping: Stepping) -> None:
    be_worker(sqlite_stepping.app)
    run_id = sqlite_stepping.start(make_step(raising(WorkerShutdown(0)), max_retries=1))
    for _ in range(2):
        sqlite_stepping.advance(run_id, is_shutdown=lambda error: isinstance(error, SystemExit))
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.retries, row.error) == (Status.FAILED, 1, "WorkerShutdown: 0")


class _Closed(collections.abc.Mapping):  # type: ignore[type-arg]
    def __getitem__(self, name: str) -> t.NoReturn:
        raise RuntimeError("closed")

    def __iter__(self) -> t.NoReturn:
        raise RuntimeError("closed")

    def __len__(self) -> int:
        return 1


def _delete_data(step: t.Any) -> None:
    del step.data


def _close_data(step: t.Any) -> None:
    step.data["lazy"] = _Closed()


def _fail_with_a_large_secret(step: t.Any) -> None:
    step.data["private_key"] = 10**5000
    raise ValueError("told")


@pytest.mark.parametrize(
    "body", [_delete_data, _close_data, _fail_with_a_large_secret], ids=lambda body: body.__name__
)
def test_data_that_cannot_be_read_fail_the_step(
    sqlite_stepping: Stepping, body: t.Callable[[t.Any], None]
) -> None:
    run_id = sqlite_stepping.start(make_step(body, max_retries=1))
    for _ in range(2):
        sqlite_stepping.advance(run_id)
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.retries) == (Status.FAILED, 0 if body is _close_data else 1)


def test_a_step_that_is_gone_once_it_is_claimed_is_handed_back(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = claiming._claim

    def claim(*args: t.Any, **conditions: t.Any) -> t.Any:
        made = real(*args, **conditions)
        monkeypatch.setattr(claiming, "_find", lambda sequence, step: None)
        return made

    monkeypatch.setattr(claiming, "_claim", claim)
    row = stepping.run(end)
    assert (row.status, row.worker_id, row.crashes) == (Status.WAITING, None, 0)
    assert row.error == "Made.end is not known here any longer"
    assert stepping.notes() == []


@pytest.mark.parametrize("what", ["filter", "handler"])
def test_a_log_that_raises_undoes_nothing(sqlite_stepping: Stepping, what: str) -> None:
    def refuse(record: t.Any) -> t.NoReturn:
        raised.append(record)
        raise RuntimeError("out of context")

    raised: list[t.Any] = []
    handler = logging.Handler()
    handler.emit = refuse  # type: ignore[method-assign]
    run_id = sqlite_stepping.start(end, make_step(raising(ValueError("told")), max_retries=1))
    log = logging.getLogger("flask_sequence")
    log.setLevel("INFO")
    log.addFilter(refuse) if what == "filter" else log.addHandler(handler)
    try:
        for _ in range(3):
            sqlite_stepping.advance(run_id)
    finally:
        log.setLevel("NOTSET")
        log.removeFilter(refuse)
        log.removeHandler(handler)
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.retries, row.error) == (Status.FAILED, 1, "ValueError: told")
    assert (sqlite_stepping.notes(), len(raised)) == (["end"], 3)


def test_an_error_whose_text_nothing_takes_is_kept_by_its_type(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = moves.make

    def make(connection: t.Any, claim: t.Any, move: Move, data: t.Any = None) -> bool:
        if move.history is not None and "told" in str(move.history.error):
            raise ValueError("refused")
        return real(connection, claim, move, data)

    monkeypatch.setattr(moves, "make", make)
    monkeypatch.setattr(patience, "TRIES", 1)
    row = sqlite_stepping.run(make_step(raising(KeyError("told")), max_retries=0))
    assert (row.status, row.error) == (Status.FAILED, "KeyError")


@pytest.mark.parametrize("keeps", ["the history", "the run"])
def test_what_cannot_be_stored_counts_as_a_crash(
    stepping: Stepping, keeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the history cannot be written the run ends without it; else the keeper takes it."""
    real = moves.make

    def make(connection: t.Any, claim: t.Any, move: Move, data: t.Any = None) -> bool:
        if move.history is not None or keeps == "the run":
            raise ValueError("refused")
        return real(connection, claim, move, data)

    monkeypatch.setattr(moves, "make", make)
    monkeypatch.setattr(patience, "TRIES", 1)
    performed = []
    run_id = stepping.start(lambda step: performed.append(step))
    most = stepping.runtime.settings.max_crashes
    for _ in range(most):
        with pytest.raises(ValueError, match="refused"):
            stepping.advance(run_id)
        if keeps == "the run":
            assert stepping.row(run_id).status is Status.RUNNING
            return
    row = stepping.row(run_id)
    assert (row.status, row.crashes, row.error) == (Status.FAILED, most, "ValueError: refused")
    assert len(performed) == most


@pytest.mark.parametrize("in_worker", [True, False])
def test_a_child_that_its_pool_kills_leaves_the_run_to_the_keeper(
    sqlite_stepping: Stepping, in_worker: bool
) -> None:
    if in_worker:
        be_worker(sqlite_stepping.app)
    run_id = sqlite_stepping.start(raising(SystemExit(signal.SIGTERM - 256)))
    if in_worker:
        with pytest.raises(SystemExit):
            sqlite_stepping.advance(run_id)
    else:
        assert sqlite_stepping.advance(run_id).status is Status.WAITING
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.retries) == ((Status.RUNNING, 0) if in_worker else (Status.WAITING, 1))
    assert sqlite_stepping.notes() == []


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise SystemExit("not even this")


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, first: int, second: int) -> None:
        super().__init__("two")
        self.reason = lambda: first + second


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Unprintable(), "Unprintable: (its message cannot be read)"),
        (Unpicklable(1, 2), "Unpicklable: two"),
        (ValueError("a\x00b\x1b[1m\nc\ud800 🙈 é"), "ValueError: a\\x00b\\x1b[1m c\\ud800 🙈 é"),
        (ValueError("x" * 3_000_000), "ValueError: " + "x" * 987 + "…"),
    ],
    ids=["unprintable", "unpicklable", "control", "long"],
)
def test_a_strange_exception_is_kept(stepping: Stepping, error: Exception, text: str) -> None:
    row = stepping.run(make_step(raising(error), max_retries=0))
    assert (row.status, row.error) == (Status.FAILED, text)
    assert stepping.run(end).status is Status.FINISHED
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(Unpicklable(1, 2)))


def test_an_exception_is_kept_whatever_the_charset_of_the_database(
    make_app: t.Callable[..., Flask], mariadb_url: str
) -> None:
    engine = sa.create_engine(mariadb_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER DATABASE CHARACTER SET latin1")
        db.metadatas[None].drop_all(connection)
        db.metadatas[None].create_all(connection)
    stepping = Stepping(make_app(mariadb_url))
    row = stepping.run(make_step(raising(ValueError("\N{SEE-NO-EVIL MONKEY} 日本")), max_retries=0))
    assert (row.status, row.error) == (Status.FAILED, "ValueError: \N{SEE-NO-EVIL MONKEY} 日本")


# Another try, since the database asks for it


def locked() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = 5
    return error


ASK_TO_REPEAT = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$",
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
    "mariadb": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
}


def ask_to_repeat(connection: sa.Connection) -> None:
    """Send a statement to which the database answers that it is to be repeated."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(ASK_TO_REPEAT[connection.dialect.name])

    def fail(*_: t.Any) -> t.NoReturn:
        raise locked()

    sa.event.listen(connection.engine, "do_execute", fail)
    try:
        connection.exec_driver_sql("SELECT 1")
    finally:
        sa.event.remove(connection.engine, "do_execute", fail)


def test_a_transient_error_is_no_failure(stepping: Stepping) -> None:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(dict(step.data))
        step.data["dirty"] = True
        note("once")
        db.session.flush()
        if len(bodies) < 3:
            ask_to_repeat(db.session.connection())

    run_id = stepping.start(body, end)
    assert stepping.advance(run_id).attempts == 1
    row = stepping.row(run_id)
    assert (row.step, stepping.notes(), bodies) == ("end", ["once"], [{}, {}, {}])
    assert stepping.history(run_id) == [("body", 1, StepStatus.FINISHED)]


def test_a_transient_error_that_stays_is_handed_back(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        ask_to_repeat(db.session.connection())

    run_id = sqlite_stepping.start(make_step(body, max_retries=0))
    outcome = sqlite_stepping.advance(run_id)
    row = sqlite_stepping.row(run_id)
    assert bodies == [1] * (FRESH_TRIES + 1)
    assert (outcome.status, row.status, row.retries) == (Status.WAITING, Status.WAITING, 0)
    assert outcome.nudge is not None
    assert (outcome.nudge.version, outcome.attempts) == (row.version, 1)
    assert 2 < delay_of(row) < 4
    assert "database is locked" in row.error
    assert sqlite_stepping.history(run_id) == []


@pytest.mark.parametrize("share", [0.8, 1.2])
def test_who_waits_for_the_database_waits_longer_each_time(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(random, "uniform", lambda *bounds: share if share in bounds else 1.0)

    def body(step: t.Any) -> None:
        ask_to_repeat(db.session.connection())

    run_id, delays = sqlite_stepping.start(make_step(body, max_retries=0)), []
    sqlite_stepping.set(run_id, waits=1)  # it has had its tries at once
    while sqlite_stepping.advance(run_id).status is Status.WAITING:
        delays.append(delay_of(sqlite_stepping.row(run_id)) / share)
    assert delays == [pytest.approx(seconds, abs=0.01) for seconds in (6, 12, 24, 30)]
    assert sqlite_stepping.row(run_id).status is Status.FAILED


@pytest.mark.parametrize(
    "error",
    [
        ValueError("database is locked"),
        sqlite3.OperationalError("database is locked"),
        sa.exc.OperationalError("x", {"note": "deadlock"}, Exception("database is locked")),
    ],
    ids=str,
)
def test_a_text_makes_no_error_transient(sqlite_stepping: Stepping, error: Exception) -> None:
    row = sqlite_stepping.run(raising(error))
    assert (row.status, row.retries) == (Status.WAITING, 1)


def test_a_real_lock_on_sqlite(make_app: t.Callable[..., Flask], sqlite_url: str) -> None:
    options = {"connect_args": {"timeout": 0.05}}
    stepping = Stepping(make_app(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options))
    holder = sqlite3.connect(str(sa.make_url(sqlite_url).database), isolation_level=None)
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        if len(bodies) == 1:
            holder.execute("BEGIN IMMEDIATE")
        elif len(bodies) == 3:
            holder.execute("ROLLBACK")
        with contextlib.suppress(sa.exc.OperationalError):
            note_by_core("once")
        note("twice")

    with contextlib.closing(holder):
        run_id = stepping.start(body)
        assert stepping.advance(run_id).status is Status.FINISHED
        assert (bodies, stepping.notes()) == ([1, 1, 1], ["once", "twice"])
        other = stepping.start(end)
        holder.execute("BEGIN IMMEDIATE")
        assert advance(stepping.runtime, other, 0) is attempt.LEFT_ALONE
        holder.execute("ROLLBACK")
        assert stepping.advance(other).status is Status.FINISHED


def test_a_serialisation_failure_on_postgresql(postgresql_stepping: Stepping) -> None:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note("once")
        if len(bodies) == 1:
            db.session.execute(
                sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$")
            )

    assert postgresql_stepping.run(body).status is Status.FINISHED
    assert (bodies, postgresql_stepping.notes()) == ([1, 1], ["once"])


@pytest.mark.parametrize("statement", ["SELEC", "SELECT nothing"])
def test_a_wrong_statement_is_a_failure(stepping: Stepping, statement: str) -> None:
    def body(step: t.Any) -> None:
        db.session.execute(sa.text(statement))

    row = stepping.run(body)
    assert (row.status, row.retries) == (Status.WAITING, 1)


def test_a_nul_in_a_parameter_is_a_failure(postgresql_stepping: Stepping) -> None:
    def body(step: t.Any) -> None:
        note_by_core("a\x00b")  # Refused by the driver, without a code.

    assert postgresql_stepping.run(body).retries == 1


# MariaDB's ways to drop what was written


@pytest.fixture
def two_rows(mariadb_stepping: Stepping) -> Stepping:
    with mariadb_stepping.connect() as connection:
        rows = [{"id": n, "step": "", "note": "row"} for n in range(1, 31)]
        connection.execute(sa.insert(Effect), rows)
    return mariadb_stepping


def touch(connection: t.Any, row: int, text: str) -> None:
    connection.execute(sa.update(Effect).where(Effect.id == row).values(note=text))


@pytest.mark.parametrize("swallows", [True, False])
def test_a_deadlock_on_mariadb(two_rows: Stepping, swallows: bool) -> None:
    bodies, has_two = [], threading.Event()

    def other() -> None:
        with two_rows.connect() as connection:
            for row in range(2, 31):  # The one with fewer writes is given up.
                touch(connection, row, "other")
            has_two.set()
            touch(connection, 1, "other")

    thread = threading.Thread(target=other)

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note_by_core("before")
        touch(db.session, 1, "mine")
        if len(bodies) == 1:
            thread.start()
            assert has_two.wait(10)
            wait_until(waits, interval=0.2)  # The view is renewed if unread for 0.1 s.
        with contextlib.suppress(sa.exc.OperationalError) if swallows else contextlib.nullcontext():
            touch(db.session, 2, "mine")
        thread.join(10)
        note_by_core("after")

    def waits() -> bool:
        with two_rows.connect() as connection:
            statement = "SELECT count(*) FROM information_schema.innodb_lock_waits"
            return bool(connection.exec_driver_sql(statement).scalar_one())

    assert two_rows.run(body).status is Status.FINISHED
    assert bodies == [1, 1]
    assert two_rows.notes()[30:] == ["before", "after"]


def test_a_listener_that_swallows_a_deadlock_on_mariadb(two_rows: Stepping) -> None:
    bodies = []

    def lose(session: t.Any) -> None:
        session.connection().connection.cursor().execute("ROLLBACK")  # as at a deadlock
        note_by_core("alone")

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        note_by_core("before")
        if len(bodies) == 1:
            sa.event.listen(db.session(), "before_commit", lose)  # behind the fence

    assert two_rows.run(body).status is Status.FINISHED
    assert bodies == [1, 1]
    assert two_rows.notes()[30:] == ["before"]


def test_a_lock_that_is_waited_for_in_vain_on_mariadb(two_rows: Stepping) -> None:
    bodies: list[int] = []
    with contextlib.ExitStack() as holder:
        touch(holder.enter_context(two_rows.connect()), 1, "held")

        def body(step: t.Any) -> None:
            bodies.append(step.attempt)
            if len(bodies) == 2:
                holder.close()
            db.session.execute(sa.text("SET innodb_lock_wait_timeout = 1"))
            touch(db.session, 1, "mine")

        assert two_rows.run(body).status is Status.FINISHED
    assert bodies == [1, 1]


def test_a_stale_snapshot_on_mariadb(two_rows: Stepping) -> None:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        db.session.execute(sa.text("SET innodb_snapshot_isolation = ON"))
        db.session.rollback()
        db.session.scalars(sa.select(Effect)).all()
        if len(bodies) == 1:
            with two_rows.connect() as connection:
                touch(connection, 1, "other")
        touch(db.session, 1, "mine")

    row = two_rows.run(body)
    assert (row.status, row.retries, bodies) == (Status.FINISHED, 0, [1, 1])


def test_ddl_in_a_step_on_mariadb(two_rows: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def body(step: t.Any) -> None:
        ddl = "CREATE OR REPLACE TABLE made (id INT)"
        db.session.execute(sa.text(f"EXECUTE IMMEDIATE '{ddl}'"))  # seen by the server alone
        note("after")

    run_id = two_rows.start(make_step(body, max_retries=0), end)
    assert two_rows.advance(run_id).status is Status.FAILED
    row = two_rows.row(run_id)
    assert row.step == "body"
    assert row.error.startswith("TransactionDoomedError: The server has dropped")
    assert len(two_rows.notes()) == 30


# The database is away while a move is made


def test_a_move_waits_for_the_database(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    real = moves.make

    def make(*args: t.Any) -> bool:
        if len(pauses) < 8:
            raise sa.exc.OperationalError("x", {}, locked())
        return real(*args)

    monkeypatch.setattr(moves, "make", make)
    monkeypatch.setattr(time, "sleep", pauses.append)
    row = sqlite_stepping.run(make_step(raising(ValueError("no")), max_retries=0))
    assert (row.status, row.error) == (Status.FAILED, "ValueError: no")
    assert len(pauses) == 8
    assert max(pauses) <= patience.LONGEST_PAUSE
    assert caplog.text.count("Waiting for the database") == 1
    assert level_of(caplog, "Waiting for the database") == "WARNING"


def test_a_move_whose_answer_is_lost_is_looked_for(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = own_move, list[int]()

    @contextlib.contextmanager
    def losing(runtime: t.Any) -> t.Iterator[t.Any]:
        with real(runtime) as connection:
            yield connection
        if not lost:
            lost.append(1)
            raise sa.exc.OperationalError("COMMIT", {}, locked())

    monkeypatch.setattr(patience, "own_move", losing)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run_id = sqlite_stepping.start(make_step(raising(ValueError("no")), max_retries=0))
    assert sqlite_stepping.advance(run_id).status is Status.FAILED
    assert [status for _, _, status in sqlite_stepping.history(run_id)] == [StepStatus.FAILED]


def test_a_move_that_cannot_be_made_leaves_no_claim_behind(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: t.Any, **values: t.Any) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(moves, "fail", fail)
    run_id = sqlite_stepping.start(make_step(raising(ValueError("no")), max_retries=0))
    with pytest.raises(ZeroDivisionError):
        sqlite_stepping.advance(run_id)
    row = sqlite_stepping.row(run_id)
    assert (row.status, row.worker_id, row.error) == (Status.WAITING, None, "ZeroDivisionError")


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({"queue": "mail"}, (None, None)),
        ({"time_limit": 60}, (None, None)),
        ({"time_limit": 60, "soft_time_limit": 50}, (50, 60)),
        ({}, (60, None)),
    ],
)
@pytest.mark.parametrize("label", ["", "{}.moved", "{}.other", "Unheard.moved"])
def test_a_step_is_performed_only_by_its_queue_and_limits(
    stepping: Stepping,
    options: dict[str, t.Any],
    limits: tuple[float | None, float | None],
    label: str,
) -> None:
    run_id = stepping.start(make_step(lambda step: note("done"), "moved"))
    make_sequence(make_step(lambda step: note("done"), "moved", **options))
    before = stepping.row(run_id)
    label = label.format(before.sequence)
    message = Message(*limits, label)
    outcome = stepping.advance(run_id, message=message)
    row, nudge = stepping.row(run_id), outcome.nudge
    assert (row.status, row.attempt, row.started_at) == (Status.WAITING, 0, None)
    assert (stepping.notes(), stepping.history(run_id)) == ([], [])
    assert nudge is not None
    assert nudge.version == row.version == before.version + 1
    assert nudge.queue == row.queue == options.get("queue", before.queue)
    assert (nudge.time_limit, nudge.soft_time_limit) == (
        options.get("time_limit"),
        options.get("soft_time_limit"),
    )
    # The one that was out is stale, wherever it comes.
    again = advance(stepping.runtime, run_id, before.version, message=message)
    assert again.status is None
    right = Message(nudge.time_limit, nudge.soft_time_limit, label)
    assert stepping.advance(run_id, message=right).status is Status.FINISHED
    assert stepping.notes() == ["done"]


def test_a_nudge_that_was_sent_again_is_taken_as_it_comes(stepping: Stepping) -> None:
    run_id = stepping.start(make_step(lambda step: note("done"), "moved"))
    make_sequence(make_step(lambda step: note("done"), "moved", time_limit=60))
    nudge = stepping.advance(run_id, message=Message()).nudge
    assert nudge is not None
    changed_by_a_hook = Message(time_limit=5, redirect=nudge.redirect)
    assert stepping.advance(run_id, message=changed_by_a_hook).status is Status.FINISHED


@pytest.mark.parametrize("of", ["nothing", "another run", "another version"])
def test_the_sign_of_a_nudge_that_was_sent_again_cannot_be_forged(
    stepping: Stepping, of: str
) -> None:
    step = make_step(lambda step: note("done"), "moved", time_limit=60)
    run_id, other = stepping.start(step), stepping.start(step)
    uid = stepping.row(other if of == "another run" else run_id).uid
    version = stepping.row(run_id).version + (of == "another version")
    sign = 1 if of == "nothing" else redirect_sign(uid, version)
    outcome = stepping.advance(run_id, message=Message(redirect=sign))
    assert (outcome.status, stepping.notes()) == (None, [])
    assert outcome.nudge is not None
    assert outcome.nudge.time_limit == 60


def test_data_that_cannot_be_read_fail_the_run(stepping: Stepping) -> None:
    run_id = stepping.start(end)
    stepping.set(run_id, data='{"at": {"__type__": "moon", "__value__": "full"}}')
    assert advance(stepping.runtime, run_id, 0).status is Status.FAILED
    with stepping.connect() as connection:
        (row,) = connection.execute(sa.select(runs.c.error, runs.c.worker_id, runs.c.attempt))
    assert "a value marked as 'moon' that cannot be read" in str(row.error)
    assert (row.worker_id, row.attempt, stepping.notes()) == (None, 1, [])


def after(step: t.Any) -> None:
    note("after")


def test_a_run_that_is_deleted_under_its_step_has_ended(stepping: Stepping) -> None:
    """By hand: the library deletes no run that has not ended."""

    def delete(step: t.Any) -> None:
        with stepping.connect() as connection:
            connection.execute(sa.delete(runs).where(runs.c.id == step.run.id))

    run_id = stepping.start(delete, after)
    outcome = advance(stepping.runtime, run_id, 0)
    assert (outcome.status, outcome.nudge) == (Status.FINISHED, None)
    assert stepping.notes() == []


def test_the_pauses_of_a_step_that_waits_for_the_database(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    run_id = sqlite_stepping.start(after)
    with sqlite_stepping.connect() as connection:
        claim = moves.claim(connection, run_id, 0, worker_id=None, pid=1)
    assert claim is not None
    attempted = t.cast("t.Any", SimpleNamespace(runtime=sqlite_stepping.runtime))
    waits = [failing._wait_seconds(attempted, claim._replace(waits=n)) for n in range(6)]
    assert waits == [0.8 * seconds for seconds in (3.0, 6.0, 12.0, 24.0, 30.0, 30.0)]
