"""Beside very many rows: every statement is served by an index, and work goes in small batches."""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence import Status
from flask_sequence.engine import control
from flask_sequence.engine.claiming import Message
from flask_sequence.engine.transaction import MOST_NUDGES
from flask_sequence.rows import reads
from flask_sequence.rows.models import runs, step_runs
from flask_sequence.worker.duties import (
    BLOCK_UNKNOWN,
    PUBLISH_DUE,
    PURGE,
    UNBLOCK_KNOWN,
    purge,
    unknown,
)
from tests.conftest import create_tables
from tests.support import services
from tests.support.application import close_app, create_app, db
from tests.support.filling import analyze, fill
from tests.support.keeping import Keeping
from tests.support.stepping import Stepping, make_sequence, make_step
from tests.support.waiting import wait_until

FINISHED = 100_000
RETENTION = 1000
"""In seconds; nearly all of them ended longer ago."""
Look = t.Callable[[sa.Connection], t.Any]
Sent = list[tuple[str, t.Any]]


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def stepping(request: pytest.FixtureRequest) -> t.Iterator[Stepping]:
    """An application with many finished runs and some of each other kind."""
    server = services.POSTGRESQL if request.param == "postgresql" else services.MARIADB
    services.require(server)
    url = services.create_database(server)
    try:
        create_tables(url)
        engine = sa.create_engine(url, poolclass=NullPool)
        fill(engine, FINISHED, Status.FINISHED, history=1)
        fill(engine, 1000, Status.RUNNING, worker_id="concat('w', i % 4)", pid="i")
        fill(engine, 1000, Status.WAITING, active_key="concat('k', i)")
        fill(engine, 1000, Status.FAILED)
        analyze(engine)
        stepping = Stepping(app := create_app(url, SEQUENCE_RETENTION=RETENTION))
        stepping.runtime.settings = dataclasses.replace(
            stepping.runtime.settings, burst_seconds=10.0
        )
        yield stepping
        close_app(app)
    finally:
        services.drop_database(server, url)


def sent_by(stepping: Stepping, act: t.Callable[[], t.Any]) -> Sent:
    """Record the statements that something sends, with their parameters."""
    sent: Sent = []

    def record(conn: t.Any, cursor: t.Any, statement: str, parameters: t.Any, *_: t.Any) -> None:
        sent.append((statement, parameters))

    with stepping.app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", record)
    try:
        act()
    finally:
        sa.event.remove(engine, "before_cursor_execute", record)
    return [entry for entry in sent if re.search(r"(FROM|UPDATE) sequence_", entry[0])]


def explain(stepping: Stepping, sent: Sent) -> list[str]:
    """Give the plan of each statement; of MariaDB's only what is said of the large tables."""
    found = []
    with stepping.connect() as connection:
        for statement, parameters in sent:
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            if stepping.dialect == "postgresql":
                found.append("\n".join(rows.scalars()))
            else:
                mine = [row for row in rows if str(row.table).startswith("sequence_")]
                mine = [row for row in mine if row.table != "sequence_workers"]
                found.append("\n".join(f"{row.type} {row.key} {row.Extra}" for row in mine))
    return found


def is_served(plan: str) -> bool:
    """Tell whether a plan reads no table from end to end, and sorts none."""
    scans = re.findall(r"Seq Scan on (\w+)", plan)
    if {"sequence_runs", "sequence_step_runs"} & set(scans):
        return False
    return not re.search(r"^ALL |filesort", plan, re.MULTILINE)


def looks_of_a_sweep(stepping: Stepping) -> dict[str, tuple[str, Look]]:
    queues = ["celery", "mail"]
    ended: dict[str, t.Any] = {"after": None, "limit": 500}
    with stepping.connect() as connection:
        (first, *_) = reads.ended_before(connection, RETENTION, **ended)
    return {
        "due": ("due", lambda c: reads.due(c, queues=queues, quiet=2.5, among=400, limit=200)),
        "count": ("due", lambda c: reads.count_due(c, queues=queues, limit=200)),
        "overdue": ("due", lambda c: reads.overdue(c, queues=queues, seconds=10)),
        "next blocked": ("sequence", lambda c: reads.next_blocked(c, "")),
        # Where next to nothing is blocked, one is as good as the other.
        "blocked": ("(sequence|status)", lambda c: reads.blocked(c, "Filled1", after=7, limit=500)),
        "held": ("running", lambda c: reads.held_by(c, "w1")),
        "orphans": ("status", lambda c: reads.orphans(c, after=7, limit=500)),
        "ended": ("finished", lambda c: reads.ended_before(c, RETENTION, **ended)),
        "ended later": (
            "finished",
            lambda c: reads.ended_before(c, RETENTION, **{**ended, "after": first}),
        ),
    }


def check_looks(stepping: Stepping, looks: dict[str, tuple[str, Look]]) -> None:
    for name, (index, look) in looks.items():
        with stepping.short() as connection:
            plans = explain(stepping, sent_by(stepping, lambda: look(connection)))  # noqa: B023
        assert plans, name
        for plan in plans:
            assert is_served(plan), f"{name}: {plan}"
            assert re.search(f"ix_sequence_runs_{index}", plan), f"{name}: {plan}"
            # Sorted is what the index has given, and not all that is due.
            assert name != "due" or "Sort" not in plan.rpartition("Limit")[2], plan


def test_what_a_sweep_reads_is_served_by_its_index(stepping: Stepping) -> None:
    check_looks(stepping, looks_of_a_sweep(stepping))


@pytest.mark.parametrize("status", [None, *Status])
@pytest.mark.parametrize("sequence", [None, "Filled1", "Unknown"])
def test_lists_are_served_by_an_index(
    stepping: Stepping, status: Status | None, sequence: str | None
) -> None:
    def act() -> None:
        with stepping.app.app_context():
            control.list_runs(status=status, sequence=sequence)

    for plan in explain(stepping, sent_by(stepping, act)):
        if stepping.dialect == "postgresql" and "Sort" in plan:
            assert int(re.findall(r"Sort .*rows=(\d+)", plan)[0]) < 5_000, plan
        assert is_served(plan), plan
        if stepping.dialect == "mariadb" and status is not None:
            assert "ix_sequence_runs_s" in plan, plan


def first(step: t.Any) -> None:
    step.data["first"] = True


def second(step: t.Any) -> None:
    if step.attempt == 1:
        raise ValueError


def test_each_statement_of_a_run_and_of_a_sweep_is_served(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = make_sequence(first, make_step(second, max_retries=0))
    for number in range(3):
        make_sequence(first, name=f"Filled{number}")  # none has the step that they stand at
    narrow = dataclasses.replace(PURGE, rows=10)
    duties = (BLOCK_UNKNOWN, UNBLOCK_KNOWN, PUBLISH_DUE, narrow)
    keeping = Keeping(stepping.runtime, duties=duties)

    def act() -> None:
        with stepping.app.app_context():
            run = sequence.set(key="order-17").start()
            db.session.commit()
            run_id = run.id
        assert stepping.advance(run_id).status is Status.FAILED
        with stepping.app.app_context():
            control.find_run(run_id).retry()
            db.session.commit()
        assert stepping.advance(run_id).status is Status.FINISHED
        with stepping.app.app_context():
            (other,) = sequence.start_many([{}])
            db.session.commit()
            control.find_run(other).cancel()
            db.session.commit()
        keeping.do(BLOCK_UNKNOWN)
        make_sequence(make_step(first, "s"), name="Filled1")
        keeping.do(UNBLOCK_KNOWN)
        keeping.do(PUBLISH_DUE)
        assert keeping.perform(narrow) == purge.AGAIN_SECONDS

    sent = sent_by(stepping, act)
    for begin in ("UPDATE sequence_runs ", "DELETE FROM sequence_runs "):
        assert any(statement.startswith(begin) for statement, _ in sent), begin
    for (statement, _), plan in zip(sent, explain(stepping, sent), strict=True):
        assert is_served(plan), f"{statement}\n{plan}"
        if stepping.dialect == "mariadb" and statement.startswith("UPDATE sequence_runs"):
            assert plan.split()[1] == "PRIMARY", f"{statement}\n{plan}"


def test_runs_are_found_by_their_primary_key_in_a_new_table(postgresql_stepping: Stepping) -> None:
    """PostgreSQL knows nothing of it yet, and takes any index whose first columns are compared."""
    stepping = postgresql_stepping
    before = [stepping.start(first, make_step(second, max_retries=0)) for _ in range(3)]

    def act() -> None:
        run_id, other, third = before
        label = f"{stepping.row(run_id).sequence}.first"
        assert stepping.advance(run_id).status is Status.WAITING
        assert stepping.advance(run_id).status is Status.FAILED
        assert stepping.advance(other, message=Message(label=label)).status is Status.WAITING
        with stepping.app.app_context():
            control.find_run(run_id).retry()
            control.find_run(third).cancel()
            db.session.commit()
        Keeping(stepping.runtime).do(PUBLISH_DUE)

    sent = sent_by(stepping, act)
    updates = [entry for entry in sent if "UPDATE sequence_runs" in entry[0]]
    assert len(updates) >= 8
    for (statement, _), plan in zip(updates, explain(stepping, updates), strict=True):
        assert "pk_sequence_runs" in plan, f"{statement}\n{plan}"


def test_the_steps_of_a_burst_touch_no_index(stepping: Stepping) -> None:
    """PostgreSQL then updates in place: no column that they change stands in an index."""
    if stepping.dialect != "postgresql":
        pytest.skip("only PostgreSQL tells")
    table = "FROM pg_stat_user_tables WHERE relname = 'sequence_runs'"

    def updates() -> tuple[int, int]:
        with stepping.connect() as connection:
            row = connection.exec_driver_sql(f"SELECT n_tup_upd, n_tup_hot_upd {table}").one()
        return row[0], row[1]

    close_app(stepping.app)  # A connection tells its figures at its end.
    steps = [make_step(first, f"s{number}") for number in range(50)]
    run_id = stepping.start(*steps)
    before = updates()
    assert stepping.advance(run_id).attempts == 50
    close_app(stepping.app)
    wait_until(lambda: updates()[0] >= before[0] + 51, 10)  # the claim, and each step
    made, in_place = (late - early for early, late in zip(before, updates(), strict=True))
    # Not the claim and the end; and where a page is full, a row moves to another.
    assert (made, in_place >= 45) == (51, True), (made, in_place)


def test_a_new_backlog_that_was_not_counted_yet_is_served_too(stepping: Stepping) -> None:
    fill(stepping.engine, 20_000, Status.WAITING)
    check_looks(stepping, looks_of_a_sweep(stepping))


def count(stepping: Stepping, *where: sa.ColumnElement[bool]) -> int:
    with stepping.connect() as connection:
        counted = sa.select(sa.func.count()).select_from(runs).where(*where)
        return connection.scalar(counted) or 0


def test_a_purge_goes_in_small_batches_and_waits_for_no_other(stepping: Stepping) -> None:
    before = count(stepping)
    narrow = dataclasses.replace(PURGE, rows=purge.PURGED_AT_ONCE)
    with stepping.connect() as other:
        found = reads.ended_before(other, RETENTION, after=None, limit=300)
        taken = [run_id for _, run_id in found]
        assert reads.lock(other, taken) == sorted(taken)
        Keeping(stepping.runtime, duties=[narrow]).do(narrow)
        assert count(stepping) == before - (purge.PURGED_AT_ONCE - 300)
        assert count(stepping, runs.c.id.in_(taken)) == 300
    with stepping.connect() as connection:
        lost = sa.select(step_runs.c.id).where(
            step_runs.c.run_id.not_in(sa.select(runs.c.id)) & (step_runs.c.id > 0)
        )
        assert connection.execute(lost.limit(1)).all() == []


def test_very_many_unknown_steps_are_blocked_in_small_batches(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(stepping.engine, 1_200, Status.WAITING, sequences=1, step="renamed", queue="'renamed'")
    make_sequence(first, name="Filled0")
    renamed = runs.c.step == "renamed"
    narrow = dataclasses.replace(UNBLOCK_KNOWN, rows=500)
    keeping = Keeping(stepping.runtime, "renamed", duties=[BLOCK_UNKNOWN, narrow])
    seen: list[int] = []

    def blocked(duty: t.Any) -> float | None:
        again = keeping.perform(duty)
        seen.append(count(stepping, renamed, runs.c.status == Status.BLOCKED))
        return again

    assert blocked(BLOCK_UNKNOWN) == unknown.AGAIN_SECONDS
    assert blocked(BLOCK_UNKNOWN) is None
    assert seen == [reads.OLDEST, 1_200]
    make_sequence(make_step(first, "renamed"), name="Filled0")
    while blocked(narrow) == unknown.AGAIN_SECONDS:
        pass
    assert seen[-1] == 0
    assert all(0 <= early - late <= 500 for early, late in itertools.pairwise(seen[1:]))


def test_many_sessions_worth_of_runs_in_one_transaction(stepping: Stepping) -> None:
    sequence = make_sequence(first)
    stepping.published.clear()
    before = count(stepping)

    def act() -> None:
        with stepping.app.app_context():
            ids = sequence.start_many({"number": n} for n in range(10_000))
            db.session.commit()
        assert ids == sorted(ids)
        assert [stepping.row(ids[n]).data["number"] for n in (0, 5_000, 9_999)] == [0, 5_000, 9_999]

    with stepping.statements() as statements:
        act()
        inserts = [statement for statement in statements if statement.startswith("INSERT")]
    assert len(inserts) <= 10_000 / 500
    assert count(stepping) == before + 10_000
    assert len(stepping.published) == MOST_NUDGES + 1  # by which it is known that there are more
