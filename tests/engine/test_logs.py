"""What the log tells of a run: a line for each step, and the exception of a final failure."""

from __future__ import annotations

import logging
import typing as t

import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded

from flask_sequence import SetupError, Status
from flask_sequence.rows.models import step_runs
from tests.support.stepping import Stepping, make_step, note


def one(step: t.Any) -> None:
    note("one")


def two(step: t.Any) -> None:
    note("two")


def fails(step: t.Any) -> None:
    raise ValueError(f"the token {step.data['token']} is refused")


def test_each_step_is_told_with_the_id_of_its_run(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_sequence")
    run_id = sqlite_stepping.start(one, two)
    for _ in range(2):
        sqlite_stepping.advance(run_id)
    assert caplog.messages == [
        f"Run {run_id}, step Made.one, attempt 1, is done: next is two",
        f"Run {run_id}, step Made.two, attempt 1, is done: the run is finished",
    ]
    assert {(record.levelname, record.name) for record in caplog.records} == {
        ("INFO", "flask_sequence")
    }


def test_a_log_without_such_lines_costs_nothing(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("flask_sequence")
    monkeypatch.setattr(logger, "info", lambda *_: pytest.fail("a line was made"))
    logger.setLevel("WARNING")
    try:
        assert sqlite_stepping.run(one).status is Status.FINISHED
    finally:
        logger.setLevel("NOTSET")


def test_a_final_failure_has_its_exception_and_no_secret(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    row = sqlite_stepping.run(make_step(fails, max_retries=0), token="hush-hush")
    assert row.status is Status.FAILED
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        f"Run {row.id}, step Made.fails, attempt 1, failed: ValueError: the token *** is refused"
    )
    assert record.exc_info is not None
    kind, error, frames = record.exc_info
    assert (kind, type(error)) == (ValueError, ValueError)
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    assert frames is not None
    assert frames.tb_frame.f_code.co_name == "fails"
    written = logging.Formatter().format(record)
    assert "ValueError: the token *** is refused\n" in written
    assert "in fails" in written
    assert "hush" not in written
    with sqlite_stepping.connect() as connection:
        (kept,) = connection.execute(sa.select(step_runs.c.error, step_runs.c.traceback))
    assert row.error == kept.error == "ValueError: the token *** is refused"
    assert "the token *** is refused" in kept.traceback
    assert "hush" not in kept.traceback


def test_a_step_that_ends_its_run_tells_where(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    def gives_up(step: t.Any) -> None:
        step.fail("no such address")

    row = sqlite_stepping.run(gives_up)
    assert row.error == "no such address"
    (record,) = caplog.records
    assert record.getMessage().endswith("failed: no such address")
    assert record.exc_info is not None
    assert "in gives_up" in logging.Formatter().format(record)


def test_another_try_is_told_with_its_number(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    for most, told in ((3, "retry 1 of 3"), (None, "retry 1")):
        caplog.clear()
        step = make_step(fails, max_retries=most, default_retry_delay=2)
        sqlite_stepping.run(step, token="x")
        (record,) = caplog.records
        assert f"is retried in 2.0 s ({told}): ValueError" in record.getMessage()
        assert record.levelname == "WARNING"
        assert record.exc_info is None


def test_what_is_not_set_up_fails_at_once(sqlite_stepping: Stepping) -> None:
    def misses(step: t.Any) -> None:
        raise SetupError("No Flask application is active here.")

    assert sqlite_stepping.run(misses).status is Status.FAILED


def test_a_soft_time_limit_names_itself_once(sqlite_stepping: Stepping) -> None:
    def slow(step: t.Any) -> None:
        raise SoftTimeLimitExceeded

    limited = sqlite_stepping.run(make_step(slow, soft_time_limit=5, max_retries=0))
    told = "SoftTimeLimitExceeded: the step took longer than its soft time limit of 5 s"
    assert limited.error == told
    assert sqlite_stepping.run(slow).error == "SoftTimeLimitExceeded"
