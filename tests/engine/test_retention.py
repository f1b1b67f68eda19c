"""A run is deleted right after its end."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status
from flask_sequence.engine.retention import delete_if_ended
from flask_sequence.rows import upkeep
from flask_sequence.rows.models import runs, step_runs
from tests.support.stepping import Stepping, note


def end(step: t.Any) -> None:
    note("end")


def kept(stepping: Stepping) -> list[int]:
    with stepping.connect() as connection:
        history = set(connection.execute(sa.select(step_runs.c.run_id)).scalars())
        ids = list(connection.execute(sa.select(runs.c.id).order_by(runs.c.id)).scalars())
    assert history <= set(ids)
    return ids


@pytest.mark.parametrize(("retention", "left"), [(0, 0), (None, 1), (100, 1)])
def test_a_run_is_deleted_right_after_its_end_if_wanted(
    make_app: t.Callable[..., Flask], sqlite_url: str, retention: int | None, left: int
) -> None:
    stepping = Stepping(make_app(sqlite_url, SEQUENCE_RETENTION=retention))
    run_id = stepping.start(end)
    delete_if_ended(stepping.runtime, run_id, Status.FINISHED)  # It has not, in truth.
    assert kept(stepping) == [run_id]
    outcome = stepping.advance(run_id)
    delete_if_ended(stepping.runtime, run_id, Status.FAILED)
    assert kept(stepping) == [run_id]
    delete_if_ended(stepping.runtime, run_id, outcome.status)
    assert len(kept(stepping)) == left


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_run_that_a_foreign_key_needs_is_emptied_at_once(
    make_app: t.Callable[..., Flask],
    postgresql_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_locked: bool,
) -> None:
    stepping = Stepping(make_app(postgresql_url, SEQUENCE_RETENTION=0))
    with stepping.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE orders (run_id BIGINT REFERENCES sequence_runs (id))"
        )
    run_id = stepping.start(end, secret="x")
    stepping.advance(run_id)
    with stepping.connect() as connection:
        connection.exec_driver_sql(f"INSERT INTO orders VALUES ({run_id:d})")
    if is_locked:
        monkeypatch.setattr(upkeep, "empty", lambda *_: 1 / 0)
    delete_if_ended(stepping.runtime, run_id, Status.FINISHED)
    row = stepping.row(run_id)
    assert row.status is Status.FINISHED
    if is_locked:
        assert "left to the keeper to delete: ZeroDivisionError" in caplog.text
        assert dict(row.data) == {"secret": "x"}
    else:
        assert f"Run {run_id} is kept, without its data" in caplog.text
        assert (dict(row.data), stepping.history(run_id)) == ({}, [])


def test_a_deletion_that_fails_is_left_to_the_keeper(
    make_app: t.Callable[..., Flask],
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: t.Any) -> None:
        raise sa.exc.TimeoutError("no connection")

    stepping = Stepping(make_app(sqlite_url, SEQUENCE_RETENTION=0))
    run_id = stepping.start(end)
    stepping.advance(run_id)
    monkeypatch.setattr(upkeep, "delete", fail)
    delete_if_ended(stepping.runtime, run_id, Status.FINISHED)
    assert "left to the keeper to delete: TimeoutError: no connection" in caplog.text
    assert kept(stepping) == [run_id]


def test_an_interrupt_while_a_run_is_deleted_is_not_swallowed(
    make_app: t.Callable[..., Flask], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> t.NoReturn:
        raise KeyboardInterrupt

    stepping = Stepping(make_app(sqlite_url, SEQUENCE_RETENTION=0))
    run_id = stepping.start(end)
    outcome = stepping.advance(run_id)
    monkeypatch.setattr(upkeep, "delete", interrupt)
    with pytest.raises(KeyboardInterrupt):
        delete_if_ended(stepping.runtime, run_id, outcome.status)
    assert kept(stepping) == [run_id]
