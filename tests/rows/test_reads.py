"""What is read in the loop is served by an index."""

from __future__ import annotations

import datetime
import itertools
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status
from flask_sequence.rows import reads
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import runs
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.starts import TwoSteps
from tests.support.stepping import Stepping, make_step

CLASSES = ("Import", "Order", "Mail")


def fill(connection: sa.Connection) -> None:
    """Add many runs that ended, and a few of each other kind."""
    now = datetime.datetime.now(datetime.UTC)
    names = itertools.cycle(CLASSES)
    many = [(Status.FINISHED, None)] * 4_000 + [(Status.CANCELLED, None)] * 500
    few = [(Status.WAITING, None)] * 60 + [(Status.RUNNING, "w")] * 20 + [(Status.FAILED, None)] * 9
    rows: list[dict[str, t.Any]] = [
        {
            "uid": uuid.uuid4(),
            "sequence": next(names),
            "step": "s",
            "status": status,
            "data": {},
            "key": f"k{number}",
            "active_key": None if status.final else f"k{number}",
            "queue": "celery",
            "worker_id": worker,
            "due_at": now - datetime.timedelta(seconds=number) if status == "waiting" else None,
            "finished_at": now if status.final else None,
        }
        for number, (status, worker) in enumerate(many + few)
    ]
    connection.execute(sa.insert(runs), rows)


def plans(connection: sa.Connection, function: t.Callable[[sa.Connection], t.Any]) -> str:
    """Give the plans of the statements that a function sends."""
    sent: list[tuple[str, t.Any]] = []

    def record(conn: t.Any, cursor: t.Any, statement: str, parameters: t.Any, *_: t.Any) -> None:
        sent.append((statement, parameters))

    sa.event.listen(connection, "before_cursor_execute", record)
    function(connection)
    sa.event.remove(connection, "before_cursor_execute", record)
    return "\n".join(
        str(row)
        for statement, parameters in sent
        for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).all()
    )


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_the_indexes_serve(request: pytest.FixtureRequest, kind: str) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    with stepping.connect() as connection:
        fill(connection)
    with stepping.connect() as connection:
        connection.exec_driver_sql(
            "ANALYZE sequence_runs" if kind == "postgresql" else "ANALYZE TABLE sequence_runs"
        ).close()
    looks: dict[str, t.Callable[[sa.Connection], t.Any]] = {
        "ix_sequence_runs_due": lambda c: reads.due(
            c, queues=["celery"], quiet=5, among=100, limit=100
        ),
        "ix_sequence_runs_running": lambda c: reads.held_by(c, "w"),
        "uq_sequence_runs_key": lambda c: reads.find_active(c, "Import", "k4503"),
        "ix_sequence_runs_sequence": lambda c: reads.list_runs(
            c, status=Status.FAILED, sequence="Import", limit=10
        ),
    }
    with stepping.connect() as connection:
        for index, look in looks.items():
            plan = plans(connection, look)
            assert index in plan, plan
        orphans = plans(connection, lambda c: reads.orphans(c))
        assert "ix_sequence_runs_" in orphans, orphans
        ended = plans(connection, lambda c: reads.ended_before(c, 60, after=None, limit=500))
        assert "ix_sequence_runs_finished" in ended, ended
        rows = reads.due(connection, queues=["celery"], quiet=0, among=5, limit=5)
        assert len(rows) == 5


def test_what_was_never_published_comes_first_then_what_was_the_longest_ago(
    stepping: Stepping,
) -> None:
    step = make_step(lambda step: None)
    ages = [30, None, 10, 60, None, 1]
    ids = [stepping.start(step) for _ in ages]
    for place, (run_id, age) in enumerate(zip(ids, ages, strict=True)):
        published_at = None if age is None else later(-age)
        stepping.set(run_id, due_at=later(place - 100), published_at=published_at)

    def found(**bounds: int) -> list[int]:
        with stepping.connect() as connection:
            rows = reads.due(connection, queues=["celery"], quiet=5, **bounds)
        assert [row.published_at is None for row in rows] == [
            ages[ids.index(row.id)] is None for row in rows
        ]
        return [ids.index(row.id) for row in rows]

    assert found(among=6, limit=6) == [1, 4, 3, 0, 2]
    assert found(among=6, limit=3) == [1, 4, 3]
    assert found(among=3, limit=3) == [1, 0, 2]


def test_the_first_that_waits_passes_over_what_does_not_count(stepping: Stepping) -> None:
    step = make_step(lambda step: None)
    ids = [stepping.start(step) for _ in range(3)]
    for place, run_id in enumerate(ids):
        stepping.set(run_id, due_at=later(place - 10))
    stepping.set(ids[1], version=4)

    def first(*without: tuple[int, int]) -> int | None:
        with stepping.connect() as connection:
            row = reads.first_waiting(connection, ignore_due=False, without=without)
        return None if row is None else ids.index(row.id)

    assert first() == 0
    assert first((ids[0], 0)) == 1
    assert first((ids[0], 0), (ids[1], 3)) == 1  # it has another version by now
    assert first((ids[0], 0), (ids[1], 4)) == 2
    assert first(*((run_id, version) for run_id in ids for version in (0, 4))) is None


def test_as_many_queues_are_looked_at_as_are_asked_for(stepping: Stepping) -> None:
    step = make_step(lambda step: None)
    for number, queue in enumerate(("c", "a", "b", "b")):
        stepping.set(stepping.start(step), queue=queue, due_at=later(-10 - number))
    with stepping.connect() as connection:
        found = [reads.due_queues(connection, seconds=5, limit=limit) for limit in range(5)]
    assert found == [[], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    "read", [lambda c, **bounds: reads.held_by(c, "w", **bounds), reads.orphans]
)
def test_a_page_of_what_is_held_begins_after_an_id(sqlite_stepping: Stepping, read: t.Any) -> None:
    with sqlite_stepping.connect() as connection:
        fill(connection)
        connection.execute(
            sa.update(runs).where(runs.c.id <= 3).values(status=Status.RUNNING, worker_id="w")
        )
        first = [held.id for held in read(connection, after=0, limit=2)]
        then = [held.id for held in read(connection, after=first[-1], limit=1)]
    assert (first, then) == ([1, 2], [3])


def test_a_page_of_what_ended_begins_after_a_pair(sqlite_stepping: Stepping) -> None:
    with sqlite_stepping.connect() as connection:
        fill(connection)
        ended = sa.update(runs).values(status=Status.FINISHED, finished_at=later(-100))
        connection.execute(sa.update(runs).values(status=Status.WAITING, finished_at=None))
        connection.execute(ended.where(runs.c.id <= 3))
    with sqlite_stepping.connect() as connection:
        first = reads.ended_before(connection, 60, after=None, limit=2)
        then = reads.ended_before(connection, 60, after=first[-1], limit=5)
    assert ([run_id for _, run_id in first], [run_id for _, run_id in then]) == ([1, 2], [3])


def test_options_that_cannot_be_read_keep_no_run_from_being_taken_up(
    sqlite_stepping: Stepping,
) -> None:
    with sqlite_stepping.connect() as connection:
        fill(connection)
        connection.execute(
            sa.update(runs).where(runs.c.id == 1).values(status=Status.RUNNING, worker_id="one")
        )
        for text, options in (("'{broken'", None), ("""'{"queue":"q"}'""", {"queue": "q"})):
            connection.exec_driver_sql(f"UPDATE sequence_runs SET options = {text} WHERE id = 1")
            assert [held.options for held in reads.held_by(connection, "one")] == [options]


def test_short_labels_change_nothing(make_app: t.Callable[..., Flask], database_url: str) -> None:
    app = make_app(
        database_url,
        SQLALCHEMY_ENGINE_OPTIONS={"label_length": 14 if "postgresql" in database_url else 6},
    )
    with app.app_context():
        run = TwoSteps.set(priority=3, countdown=0).start(note="x")
        db.session.commit()
        connection = db.session.connection()
        [due] = reads.due(connection, queues=[run.queue], quiet=0, among=9, limit=9)
        assert (due.id, due.step, due.options) == (run.id, "First", {"priority": 3})
        assert due.due_at <= due.now
        [at] = reads.overdue(connection, queues=[run.queue], seconds=0)
        assert (at.id, at.queue, at.options) == (run.id, run.queue, {"priority": 3})
        db.session.commit()
        assert drain(app) == 2
        assert run.status is Status.FINISHED
