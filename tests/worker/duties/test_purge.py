"""What ended long ago is deleted."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status
from flask_sequence.rows import reads, upkeep
from flask_sequence.rows.dialects import clock, later
from flask_sequence.rows.models import runs, step_runs, workers
from flask_sequence.worker.duties import PURGE, REMOVE_GONE_WORKERS, lease, purge
from tests.support.keeping import Keeping, spoil_time
from tests.support.stepping import Stepping, note


def end(step: t.Any) -> None:
    note("end")


def ended(stepping: Stepping, seconds: float, status: Status = Status.FINISHED) -> int:
    run_id = stepping.start(end, secret="x")
    stepping.advance(run_id)
    stepping.set(run_id, status=status, finished_at=later(-seconds))
    return run_id


def kept(stepping: Stepping) -> list[int]:
    with stepping.connect() as connection:
        history = set(connection.execute(sa.select(step_runs.c.run_id)).scalars())
        ids = list(connection.execute(sa.select(runs.c.id).order_by(runs.c.id)).scalars())
    assert history <= set(ids)
    return ids


def test_what_ended_long_ago_is_deleted_in_batches(
    make_app: t.Callable[..., Flask], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping = Stepping(make_app(database_url, SEQUENCE_RETENTION=1000))
    monkeypatch.setattr(purge, "PURGED_AT_ONCE", 2)
    old = [ended(stepping, 1001), ended(stepping, 3000, Status.CANCELLED), ended(stepping, 1002)]
    stuck = [ended(stepping, 5000, status) for status in (Status.FAILED, Status.BLOCKED)]
    young = [*stuck, ended(stepping, 900), stepping.start(end)]
    narrow = dataclasses.replace(PURGE, rows=2)
    keeping = Keeping(stepping.runtime, duties=[narrow])
    pages: list[int] = []

    def count(*args: t.Any, limit: int, **bounds: t.Any) -> t.Any:
        pages.append(limit)
        return reads.ended_before(*args, limit=limit, **bounds)

    with monkeypatch.context() as patch:
        patch.setattr(purge, "reads", SimpleNamespace(**{**vars(reads), "ended_before": count}))
        assert keeping.perform(narrow) == purge.AGAIN_SECONDS  # There is more.
    assert (len(kept(stepping)), pages) == (5, [2])
    assert keeping.perform(narrow) is None
    assert (kept(stepping), len(old)) == (young, 3)


def test_a_long_history_goes_before_its_run(
    make_app: t.Callable[..., Flask], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much of it as one statement may delete, again and again."""
    deleted: list[int] = []
    real = upkeep.delete_history

    def delete(connection: sa.Connection, told: t.Sequence[int]) -> None:
        deleted.append(len(told))
        real(connection, told)

    stepping = Stepping(make_app(sqlite_url, SEQUENCE_RETENTION=1000))
    monkeypatch.setattr(purge, "HISTORY_AT_ONCE", 2)
    monkeypatch.setattr(upkeep, "delete_history", delete)
    run_id = ended(stepping, 1001)
    with stepping.connect() as connection:
        told = connection.execute(sa.select(step_runs)).mappings().one()
        for _ in range(4):
            connection.execute(sa.insert(step_runs).values({**told, "id": None}))
    Keeping(stepping.runtime).do(PURGE)
    assert (kept(stepping), deleted, run_id) == ([], [2, 2, 1], run_id)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_time_that_python_does_not_know_keeps_nothing_back(
    make_app: t.Callable[..., Flask], request: pytest.FixtureRequest, kind: str
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    stepping = Stepping(make_app(url, SEQUENCE_RETENTION=1000))
    old = [ended(stepping, 2000) for _ in range(2)]
    with stepping.connect() as connection:
        spoil_time(connection, "finished_at", old[0])
    Keeping(stepping.runtime).do(PURGE)
    assert kept(stepping) == []


@pytest.mark.parametrize("retention", [1000, None])
def test_workers_that_are_long_gone_are_removed(
    make_app: t.Callable[..., Flask], database_url: str, retention: int | None
) -> None:
    stepping = Stepping(make_app(database_url, SEQUENCE_RETENTION=retention))
    for name, ago in (("silent", lease.GONE_SECONDS + 1), ("perhaps", lease.GONE_SECONDS - 60)):
        with stepping.connect() as connection:
            upkeep.renew_worker(connection, name, host="host", pid=1, lease=-ago)
    Keeping(stepping.runtime).do(REMOVE_GONE_WORKERS)
    with stepping.connect() as connection:
        left = set(connection.execute(sa.select(workers.c.id)).scalars())
    assert left == {"perhaps", stepping.runtime.worker_id}


@pytest.mark.parametrize("rule", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_a_run_that_a_foreign_key_needs_is_kept_without_its_data(
    make_app: t.Callable[..., Flask],
    database_url: str,
    rule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stepping = Stepping(make_app(database_url, SEQUENCE_RETENTION=100))
    if rule and stepping.dialect in ("mariadb", "mysql"):
        rule = ""
    if stepping.dialect == "sqlite":
        with stepping.app.app_context():
            sa.event.listen(
                sweep_engine(stepping), "connect", lambda c, _: c.execute("PRAGMA foreign_keys=ON")
            )
    with stepping.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, run_id BIGINT,"
            f" FOREIGN KEY (run_id) REFERENCES sequence_runs (id) {rule})"
        )
    needed, free = ended(stepping, 200), ended(stepping, 200)
    with stepping.connect() as connection:
        connection.exec_driver_sql(f"INSERT INTO orders VALUES (1, {needed})")
    Keeping(stepping.runtime).do(PURGE)
    assert kept(stepping) == [needed] != [free]
    row = stepping.row(needed)
    assert (row.status, dict(row.data), row.format) == (Status.FINISHED, {}, 0)
    assert stepping.history(needed) == []
    assert f"Run {needed} is kept" in caplog.text
    caplog.clear()
    Keeping(stepping.runtime).do(PURGE)
    assert "is kept" not in caplog.text  # Reported once.


def sweep_engine(stepping: Stepping) -> sa.Engine:
    bind = stepping.app.extensions["sqlalchemy"].engines[None]
    assert isinstance(bind, sa.Engine)
    bind.dispose()
    return bind


@pytest.mark.parametrize(
    ("count", "told"), [(1, "1 run is older than SEQUENCE_RETENTION"), (2, "2 runs are older than")]
)
def test_what_cannot_be_deleted_is_told(
    caplog: pytest.LogCaptureFixture, count: int, told: str
) -> None:
    post: t.Any = SimpleNamespace(is_new=lambda what: True)
    end_time = datetime.datetime(2026, 1, 1)
    purge.Purge(post)._tell([((end_time, 7 + n), ValueError("locked")) for n in range(count)])
    assert told in caplog.text
    assert "cannot be deleted, such as run 7: ValueError: locked." in caplog.text


def test_times_are_the_database_s(stepping: Stepping) -> None:
    run_id = stepping.start(end)
    with stepping.connect() as connection:
        now = connection.scalar(sa.select(clock()))
    row = stepping.row(run_id)
    for value in (row.created_at, row.due_at, row.published_at, row.updated_at):
        assert abs((value - now).total_seconds()) < 5
