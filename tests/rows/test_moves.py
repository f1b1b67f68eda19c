"""The moves: each by its condition, with the version raised."""

from __future__ import annotations

import datetime
import functools
import typing as t
import uuid

import pytest
import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.engine.connections import own_transaction
from flask_sequence.failures import Failure
from flask_sequence.rows import moves, reads
from flask_sequence.rows.claims import Claim
from flask_sequence.rows.dialects import later
from flask_sequence.rows.inserts import insert_many
from flask_sequence.rows.models import EMPTIED, FORMAT, runs
from flask_sequence.status import ACTIVE, MOVES
from tests.support.stepping import Stepping, note

LABEL = "host:1"


def end(step: t.Any) -> None:
    note("end")


@pytest.fixture
def claim(stepping: Stepping) -> Claim:
    run_id = stepping.start(end)
    with own_transaction(stepping.runtime) as connection:
        claim = moves.claim(connection, run_id, 0, worker_id="me", pid=1)
    assert claim is not None
    return claim


def held_moves(claim: Claim) -> dict[str, t.Callable[[sa.Connection], bool]]:
    kept = Failure("E", "T")
    made = {
        "checkpoint": moves.CHECKPOINT,
        "advance": moves.advance("b", queue="q", label=LABEL),
        "hold": moves.hold("b", label=LABEL),
        "finish": moves.finish(label=LABEL),
        "reschedule": moves.reschedule(claim, kept, delay=1, label=LABEL),
        "hand_back": moves.hand_back(claim, delay=1, error="E"),
        "fail": moves.fail(kept, label=LABEL),
        "crash": moves.crash(claim, delay=1, error="E", label=LABEL),
        "crash at last": moves.crash(claim, delay=None, error="E", label=LABEL),
    }
    data = {"checkpoint": '{"a":1}'}

    def making(name: str) -> t.Callable[[sa.Connection], bool]:
        return lambda c: moves.make(c, claim, made[name], data.get(name))

    return {name: making(name) for name in made}


def test_a_move_needs_the_version_and_the_status(stepping: Stepping, claim: Claim) -> None:
    lost: list[dict[str, t.Any]] = [{"version": claim.version + 1}]
    lost += [{"status": status} for status in Status if status is not Status.RUNNING]
    for change in lost:
        stepping.set(claim.id, **{"status": Status.RUNNING, "version": claim.version, **change})
        before = stepping.row(claim.id)
        for move in held_moves(claim).values():
            with own_transaction(stepping.runtime) as connection:
                assert not move(connection)
        assert stepping.row(claim.id) == before
    assert stepping.history(claim.id) == []


def test_each_move_raises_the_version_and_is_an_allowed_one(
    stepping: Stepping, claim: Claim
) -> None:
    before = stepping.row(claim.id)
    seen = set()
    for name, move in held_moves(claim).items():
        stepping.set(claim.id, **before._mapping)
        with own_transaction(stepping.runtime) as connection:
            assert move(connection), name
        row = stepping.row(claim.id)
        assert row.version == claim.version + 1
        assert row.updated_at >= before.updated_at
        assert row.status in MOVES[Status.RUNNING]
        is_held = row.status is Status.RUNNING
        assert (row.worker_id, row.pid) == (("me", 1) if is_held else (None, None))
        assert (row.due_at is not None) == (row.status is Status.WAITING)
        assert (row.finished_at is not None) == (row.status is Status.FINISHED)
        seen.add(row.status)
    assert seen == {Status.RUNNING, Status.WAITING, Status.FINISHED, Status.FAILED}


@pytest.mark.parametrize("data", [None, "{}"])
def test_each_move_of_a_held_run_bounds_its_wait(
    postgresql_stepping: Stepping, data: str | None
) -> None:
    """Made in a transaction, or in one message with its COMMIT."""
    dialect = postgresql_stepping.engine.dialect
    told = {"told_step": "a", "told_attempt": 1, "told_started_at": None}
    for move in (moves.CHECKPOINT, moves.hold("b", label=LABEL), moves.finish(label=LABEL)):
        change = move.change(data)
        values = {**change._sent, **told, "run": 1, "held": 1, "to_data": data}
        for statement in (change.update_and_tell, change.update_or_fail):
            text, _ = statement.for_driver(dialect, values)
            assert text.count("set_config('lock_timeout', '30s', true)") == 1


def test_each_claim_counts_as_an_attempt(stepping: Stepping, claim: Claim) -> None:
    assert (claim.attempt, stepping.row(claim.id).attempt) == (1, 1)
    with own_transaction(stepping.runtime) as connection:
        assert moves.make(connection, claim, moves.hand_back(claim, delay=0, error="E"))
        again = moves.claim(connection, claim.id, claim.version + 1, worker_id="me", pid=1)
    assert again is not None
    assert (again.attempt, stepping.row(claim.id).attempt) == (2, 2)


def test_a_step_that_the_same_process_goes_on_with_begins_then(
    stepping: Stepping, claim: Claim
) -> None:
    stepping.set(claim.id, step_started_at=later(-100))
    with own_transaction(stepping.runtime) as connection:
        assert moves.make(connection, claim, moves.hold("b", label=LABEL))
    row = stepping.row(claim.id)
    assert row.step_started_at >= claim.step_started_at


def test_only_a_run_that_waits_goes_to_another_queue(stepping: Stepping, claim: Claim) -> None:
    waiting = stepping.start(end)
    with own_transaction(stepping.runtime) as connection:
        assert not moves.redirect(connection, claim.id, claim.version, queue="other")
        assert moves.redirect(connection, waiting, 0, queue="other")
    assert (stepping.row(claim.id).queue, stepping.row(waiting).queue) == ("celery", "other")


@pytest.mark.parametrize("way", ["advance", "hold", "a checkpoint that changed the data"])
def test_progress_begins_to_count_again(stepping: Stepping, claim: Claim, way: str) -> None:
    stepping.set(claim.id, crashes=3, waits=2)
    made = {
        "advance": moves.advance("b", queue="q", label=LABEL),
        "hold": moves.hold("b", label=LABEL),
    }
    data = None if way in made else '{"a":1}'
    with own_transaction(stepping.runtime) as connection:
        assert moves.make(connection, claim, made.get(way, moves.CHECKPOINT), data)
    row = stepping.row(claim.id)
    assert (row.crashes, row.waits) == (0, 0)


def test_moves_from_outside(stepping: Stepping) -> None:
    run_id = stepping.start(end)
    for status in Status:
        stepping.set(run_id, status=status, active_key="k", finished_at=None, retries=2)
        version = stepping.row(run_id).version
        with own_transaction(stepping.runtime) as connection:
            assert not moves.revive(connection, run_id, version + 1, is_published=True)
            assert moves.revive(connection, run_id, version, is_published=True) is (
                status is Status.FAILED
            )
        stepping.set(run_id, status=status, active_key="k", finished_at=None)
        version = stepping.row(run_id).version
        with own_transaction(stepping.runtime) as connection:
            assert moves.cancel(connection, run_id) is (status in ACTIVE)
        row = stepping.row(run_id)
        if status in ACTIVE:
            assert (row.status, row.version, row.active_key) == (
                Status.CANCELLED,
                version + 1,
                None,
            )
        else:
            assert (row.status, row.version, row.active_key) == (status, version, "k")


def test_many_runs_at_once(stepping: Stepping) -> None:
    same: dict[str, t.Any] = {"sequence": "S", "step": "s", "status": Status.WAITING}
    same |= {"queue": "q", "version": 0, "options": {"queue": "q"}}
    rows = [{"uid": uuid.uuid4(), "data": f'{{"number": {n}}}'} for n in range(5)]
    with stepping.connect() as connection:
        insert = functools.partial(insert_many, connection, same=same, is_published=True)
        ids = insert(rows[:3], due_at=None)
        ids += insert(rows[3:], same={**same, "sequence": "T"}, due_at=None)
        ids += insert(rows[:1], due_at=later(60), is_published=False)
        if stepping.dialect != "postgresql":
            connection.dialect.insert_executemany_returning = False  # as on MySQL
        assert insert(rows[:2], due_at=None) == [ids[-1] + 1, ids[-1] + 2]
        connection.execute(sa.delete(runs).where(runs.c.id > ids[-1]))
    assert ids == sorted(set(ids))
    found = [stepping.row(run_id) for run_id in ids]
    assert [row.uid for row in found] == [row["uid"] for row in [*rows, rows[0]]]
    assert [row.due_at > row.created_at + datetime.timedelta(seconds=30) for row in found] == [
        *[False] * 5,
        True,
    ]

    assert [row.published_at is None for row in found] == [*[False] * 5, True]

    def listed(**filters: t.Any) -> list[int]:
        filters = {"status": None, "sequence": None, "limit": 9, **filters}
        with stepping.connect() as connection:
            return [row.id for row in reads.list_runs(connection, **filters)]

    assert listed() == ids[::-1]
    assert listed(limit=2) == ids[:-3:-1]
    assert listed(sequence="T", status=Status.WAITING) == ids[4:2:-1]
    assert listed(sequence="T") == ids[4:2:-1]
    assert listed(sequence="S", limit=1) == [ids[5]]
    assert listed(status=Status.FAILED) == []


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"step": "another"},
        {"sequence": "another"},
        {"queue": "another"},
        {"options": {"priority": 3}},
        {"due_at": later(60)},
        {"status": Status.FAILED},
        {"version": 1},
        {"format": FORMAT + 1},
        {"format": EMPTIED},
    ],
    ids=lambda change: next(iter(change), "nothing"),
)
def test_a_run_is_claimed_unseen_only_where_it_is_expected(
    stepping: Stepping, change: dict[str, t.Any]
) -> None:
    run_id = stepping.start(end)
    row = stepping.row(run_id)
    stepping.set(run_id, **{"version": 0, **change})
    expected = {name: getattr(row, name) for name in ("sequence", "step", "queue")}
    with own_transaction(stepping.runtime) as connection:
        claim = moves.claim(connection, run_id, 0, worker_id="me", pid=1, expected=expected)
    assert (claim is None) == bool(change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"due_at": later(60)},
        {"version": 1},
        {"format": FORMAT + 1},
        {"format": EMPTIED},
        *({"status": status} for status in Status if status is not Status.WAITING),
    ],
    ids=lambda change: next(iter(change), "nothing"),
)
def test_a_run_is_claimed_only_where_it_waits(stepping: Stepping, change: dict[str, t.Any]) -> None:
    run_id = stepping.start(end)
    stepping.set(run_id, **{"version": 0, **change})
    before = stepping.row(run_id)
    with own_transaction(stepping.runtime) as connection:
        claim = moves.claim(connection, run_id, 0, worker_id="me", pid=1)
    assert (claim is None) == bool(change)
    assert not change or stepping.row(run_id) == before


def test_a_move_that_is_not_committed_keeps_nobody_from_another_run(
    mariadb_stepping: Stepping,
) -> None:
    """MariaDB locks the gaps of each index by which it finds a row; it must be the primary key."""
    runtime = mariadb_stepping.runtime
    first, *others = [mariadb_stepping.start(end) for _ in range(4)]
    with own_transaction(runtime) as connection:
        claim = moves.claim(connection, first, 0, worker_id="me", pid=1)
    assert claim is not None
    with own_transaction(runtime) as standing, own_transaction(runtime) as connection:
        assert moves.make(standing, claim, moves.advance("b", queue="q", label=LABEL))
        connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
        for run_id in others:
            assert moves.claim(connection, run_id, 0, worker_id="me", pid=1)


def test_a_move_says_when_the_run_is_due() -> None:
    at_once = [
        moves.advance("second", queue="celery", label="here"),
        moves.hold("second", label="here"),
        moves.finish(label="here"),
        moves.CHECKPOINT,
    ]
    assert [move.delay for move in at_once] == [0.0] * 4
