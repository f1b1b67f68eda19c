"""What is published again."""

from __future__ import annotations

import collections
import dataclasses
import json
import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from celery.worker import state

from flask_sequence import Status
from flask_sequence.rows import moves, reads
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import FORMAT, runs
from flask_sequence.worker.duties import PUBLISH_DUE, publishing
from tests.support.application import db
from tests.support.keeping import Keeping, spoil_time
from tests.support.logs import level_of
from tests.support.stepping import Stepping, make_sequence, note

DEFAULT = "celery"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock by which the keeper sweeps."""
    now = [1000.0]
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def end(step: t.Any) -> None:
    note("end")


def test_only_what_is_due_and_unheld_is_published(stepping: Stepping) -> None:
    """Rows around the horizon; the sweep's interval is 5 s."""
    waiting: dict[str, t.Any] = {"status": Status.WAITING, "due_at": later(-1)}
    rows: dict[str, dict[str, t.Any]] = {
        "due, never published": {**waiting, "published_at": None},
        "due, published by the last pass": {**waiting, "published_at": later(-3)},
        "due, of another worker's": {**waiting, "published_at": None, "queue": "other"},
        "due, published just now": {**waiting, "published_at": later(60)},  # on a slow machine
        "due, a newer form": {**waiting, "published_at": None, "sequence": "Unknown"},
        "due later": {**waiting, "due_at": later(60), "published_at": None},
        "not by the clock": {**waiting, "due_at": None, "published_at": None},
        "running": {"status": Status.RUNNING, "due_at": None, "published_at": later(-60)},
        "failed": {"status": Status.FAILED, "due_at": later(-60), "published_at": later(-60)},
        "finished": {"status": Status.FINISHED, "due_at": later(-60), "published_at": later(-60)},
        "cancelled": {"status": Status.CANCELLED, "due_at": None, "published_at": later(-60)},
        "paused": {"status": Status.PAUSED, "due_at": later(-60), "published_at": later(-60)},
        "blocked": {"status": Status.BLOCKED, "due_at": later(-60), "published_at": later(-60)},
    }
    ids = {stepping.start(end): name for name in rows}
    for run_id, name in ids.items():
        stepping.set(run_id, **rows[name])
    before = {run_id: stepping.row(run_id).published_at for run_id in ids}

    def names(*queues: str) -> list[str]:
        nudges = Keeping(stepping.runtime, *queues).do(PUBLISH_DUE)
        assert all(nudge.version == 0 and nudge.label == "Made.end" for nudge in nudges)
        return sorted(ids[nudge.run_id] for nudge in nudges)

    assert names(DEFAULT) == ["due, never published", "due, published by the last pass"]
    assert names(DEFAULT) == []  # They are published, as far as this interval is concerned.
    changed = {ids[run_id] for run_id in ids if stepping.row(run_id).published_at != before[run_id]}
    assert changed == {"due, never published", "due, published by the last pass"}
    assert names("other") == ["due, of another worker's"]


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("column", ["due_at", "published_at"])
def test_a_time_that_python_does_not_know_keeps_nobody_back(
    request: pytest.FixtureRequest, kind: str, column: str
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    ids = [stepping.start(end) for _ in range(3)]
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
        spoil_time(connection, column, ids[0])
    nudges = Keeping(stepping.runtime).do(PUBLISH_DUE)
    assert sorted(nudge.run_id for nudge in nudges) == ids


def test_the_oldest_come_first_as_long_as_there_is_room(stepping: Stepping) -> None:
    ids = [stepping.start(end) for _ in range(5)]
    for age, run_id in enumerate(ids):
        stepping.set(run_id, due_at=later(-10 - age), published_at=None)
    narrow = dataclasses.replace(PUBLISH_DUE, rows=2)
    keeping = Keeping(stepping.runtime, duties=[narrow, PUBLISH_DUE])
    assert [nudge.run_id for nudge in keeping.do(narrow)] == ids[:2:-1]
    assert [nudge.run_id for nudge in keeping.do(PUBLISH_DUE)] == ids[2::-1]


def test_what_was_never_published_comes_before_what_waits_in_the_broker(
    stepping: Stepping,
) -> None:
    ids = [stepping.start(end) for _ in range(8)]
    for run_id in ids[:5]:
        stepping.set(run_id, due_at=later(-100), published_at=later(-4))
    for run_id in ids[5:]:
        stepping.set(run_id, due_at=later(-50), published_at=None)
    keeping = Keeping(stepping.runtime)
    keeping.publisher.waiting = 5
    assert [nudge.run_id for nudge in keeping.do(PUBLISH_DUE)] == ids[5:]


def test_a_nudge_that_says_of_more_calls_for_the_duty(sqlite_stepping: Stepping) -> None:
    runtime = sqlite_stepping.runtime
    keeping = Keeping(runtime)
    post = keeping.keeper.post
    assert not PUBLISH_DUE.is_called(post)
    runtime.worker = worker = t.cast("t.Any", SimpleNamespace(id="w", more_due=False))
    assert not PUBLISH_DUE.is_called(post)
    worker.more_due = True
    assert PUBLISH_DUE.is_called(post)
    keeping.do(PUBLISH_DUE)
    assert not PUBLISH_DUE.is_called(post)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_sweepers_share(request: pytest.FixtureRequest, kind: str) -> None:
    """What one has taken, the other one neither waits for nor sends again."""
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    ids = [stepping.start(end) for _ in range(6)]
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
    with stepping.connect() as other:
        assert reads.lock_due(other, ids[:4], quiet=2.5) == ids[:4]
        moves.mark_published(other, ids[:4])
        nudges = Keeping(stepping.runtime).do(PUBLISH_DUE)
    assert [nudge.run_id for nudge in nudges] == ids[4:]
    with stepping.connect() as connection:
        assert reads.lock_due(connection, ids, quiet=2.5) == []  # another one has been faster


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """What Celery counts of the messages that came, by their labels."""
    counted: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(state, "total_count", counted)
    return counted


def later_pass(stepping: Stepping, keeping: Keeping, *, depth: int) -> int:
    """Do the duty an interval later, with some messages in the broker; count what it sends."""
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=later(-60)))
    keeping.publisher.waiting = depth
    return len(keeping.do(PUBLISH_DUE))


def test_what_waits_in_the_broker_is_not_published_again(
    sqlite_stepping: Stepping, counted: collections.Counter[str], clock: list[float]
) -> None:
    ids = [sqlite_stepping.start(end) for _ in range(8)]
    keeping = Keeping(sqlite_stepping.runtime)

    def published(*, depth: int) -> int:
        clock[0] += 5.0
        return later_pass(sqlite_stepping, keeping, depth=depth)

    assert published(depth=0) == len(ids)
    assert published(depth=6) == 2
    assert published(depth=100_000) == 0
    assert keeping.perform(PUBLISH_DUE) == publishing.HUNGRY_SECONDS  # it looks again soon
    assert published(depth=8) == 0
    assert published(depth=90) == 0
    # Other tasks come through the same queue: the messages that wait may all be theirs.
    counted.update({"shop.mail": 30, "Made.end": 10})
    assert published(depth=8) == 6
    counted.update({"shop.mail": 1000})
    assert published(depth=90) == 8
    counted.update({"Made.end": 100_000})
    assert published(depth=8) == 0


def test_a_keeper_with_nothing_to_publish_is_not_hungry(
    sqlite_stepping: Stepping, clock: list[float]
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    assert keeping.perform(PUBLISH_DUE) is None
    sqlite_stepping.start(end)
    clock[0] += 5.0
    assert later_pass(sqlite_stepping, keeping, depth=0) == 1
    keeping.publisher.waiting = 1
    clock[0] += 5.0
    assert keeping.perform(PUBLISH_DUE) is None


def test_a_hungry_keeper_fills_up_what_is_half_empty(
    sqlite_stepping: Stepping, clock: list[float]
) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    with sqlite_stepping.app.app_context():
        make_sequence(end).start_many([{}] * 300)
        db.session.commit()
    with sqlite_stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
    sent = []
    for depth in (0, 100, 51, 49, 10, 0):
        clock[0] += 0.1
        keeping.publisher.waiting = depth
        sent.append(len(keeping.do(PUBLISH_DUE)))
    assert sent == [100, 0, 0, 51, 90, 59]
    assert keeping.perform(PUBLISH_DUE) is None


def test_some_get_through_where_others_fill_the_queue(
    sqlite_stepping: Stepping, counted: collections.Counter[str], clock: list[float]
) -> None:
    """One slot, and never fewer than 150 messages of the application's own tasks before it."""
    ids = [sqlite_stepping.start(end) for _ in range(30)]
    with sqlite_stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
    keeping = Keeping(sqlite_stepping.runtime)
    keeping.publisher.waiting = 150
    passes = []
    for _ in range(3):
        counted["shop.mail"] += 1
        clock[0] += 5.0
        nudges = keeping.do(PUBLISH_DUE)
        passes.append([nudge.run_id for nudge in nudges])
        clock[0] += 0.1
        assert keeping.do(PUBLISH_DUE) == []  # not each time that it looks
    assert [len(found) for found in passes] == [publishing.RESERVED] * 3
    assert sorted(run_id for found in passes for run_id in found) == ids


def test_where_others_fill_the_queue_a_run_is_sent_again_after_twice_as_long(
    sqlite_stepping: Stepping, counted: collections.Counter[str], clock: list[float]
) -> None:
    run_id = sqlite_stepping.start(end)
    keeping = Keeping(sqlite_stepping.runtime)
    keeping.publisher.waiting = 150
    counted["shop.mail"] += 1
    sent = []
    published_at = 0
    for age in range(5, 1000, 5):
        since = {"due_at": later(-age), "published_at": later(published_at - age)}
        sqlite_stepping.set(run_id, **since)
        clock[0] += 5.0
        if keeping.do(PUBLISH_DUE):
            sent.append(age)
            published_at = age
    assert sent == [5, 10, 20, 40, 80, 160, 320, 640]


def test_a_run_that_cannot_be_read_spoils_no_other(stepping: Stepping) -> None:
    broken, later_form, good = (stepping.start(end) for _ in range(3))
    with stepping.connect() as connection:
        text = '{"queue": {"__type__": "nothing", "__value__": "1"}}'
        table = sa.table("sequence_runs", sa.column("id"), sa.column("options", sa.JSON))
        kept = sa.update(table).values(options=json.loads(text)).where(table.c.id == broken)
        connection.execute(kept)
        connection.execute(sa.update(runs).values(published_at=None))
    stepping.set(later_form, format=FORMAT + 1)
    nudges = Keeping(stepping.runtime).do(PUBLISH_DUE)
    assert [(nudge.run_id, nudge.queue) for nudge in nudges] == [
        (broken, DEFAULT),
        (good, DEFAULT),
    ]


def test_a_run_that_cannot_be_published_is_named(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = (stepping.start(end) for _ in range(2))
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
    real = moves.mark_published

    def mark(connection: sa.Connection, run_ids: t.Collection[int]) -> None:
        if broken in run_ids:
            connection.exec_driver_sql("SELECT nothing FROM sequence_runs")
        real(connection, run_ids)

    monkeypatch.setattr(moves, "mark_published", mark)
    keeping = Keeping(stepping.runtime)
    assert [nudge.run_id for nudge in keeping.do(PUBLISH_DUE)] == [good]
    assert level_of(caplog, f"Run {broken} cannot be published") == "ERROR"
