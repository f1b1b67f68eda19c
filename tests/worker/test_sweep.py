"""What is published again, taken up, blocked, and deleted."""

from __future__ import annotations

import contextlib
import threading
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status, StepStatus
from flask_sequence.engine.sessions import own_transaction
from flask_sequence.rows import moves, reads, upkeep
from flask_sequence.rows.claims import Claim
from flask_sequence.rows.dialects import clock, later
from flask_sequence.rows.models import runs, step_runs, workers
from flask_sequence.runtime import Nudge
from flask_sequence.worker import sweep
from tests.support.stepping import Stepping, make_sequence, make_step, note

DEFAULT = "celery"


def end(step: t.Any) -> None:
    note("end")


def claimed(stepping: Stepping, *steps: t.Any, ago: float = 0.0, **values: t.Any) -> Claim:
    """Start a run and claim it, as a process that is gone by now."""
    run_id = stepping.start(*(steps or (end,)))
    with own_transaction(stepping.runtime) as connection:
        claim = moves.claim(connection, run_id, 0, worker_id="gone", pid=4711)
    assert claim is not None
    stepping.set(run_id, step_started_at=later(-ago), **values)
    with own_transaction(stepping.runtime) as connection:
        held = reads.held_by(connection, values.get("worker_id", "gone"))
        return next(claim for claim in held if claim.id == run_id)


def worker(stepping: Stepping, name: str, lease: float) -> None:
    with stepping.connect() as connection:
        upkeep.renew_worker(connection, name, host="host", pid=1, lease=lease)


# Published again


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
        nudges = sweep.due_nudges(stepping.runtime, stepping.short, queues, 100)
        assert all(nudge.version == 0 and nudge.label == "Made.end" for nudge in nudges)
        return sorted(ids[nudge.run_id] for nudge in nudges)

    assert names(DEFAULT) == ["due, never published", "due, published by the last pass"]
    assert names(DEFAULT) == []  # They are published, as far as this interval is concerned.
    changed = {ids[run_id] for run_id in ids if stepping.row(run_id).published_at != before[run_id]}
    assert changed == {"due, never published", "due, published by the last pass"}
    assert names("other") == ["due, of another worker's"]


def test_the_oldest_come_first_as_long_as_there_is_room(stepping: Stepping) -> None:
    ids = [stepping.start(end) for _ in range(5)]
    for age, run_id in enumerate(ids):
        stepping.set(run_id, due_at=later(-10 - age), published_at=None)
    runtime, short = stepping.runtime, stepping.short
    assert [n.run_id for n in sweep.due_nudges(runtime, short, [DEFAULT], 2)] == ids[:2:-1]
    assert [n.run_id for n in sweep.due_nudges(runtime, short, [DEFAULT], 9)] == ids[2::-1]


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_sweepers_share(request: pytest.FixtureRequest, kind: str) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    ids = [stepping.start(end) for _ in range(6)]
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).values(published_at=None))
    found: list[int] = []
    with own_transaction(stepping.runtime) as connection:
        first = reads.due(connection, queues=[DEFAULT], quiet=5, limit=4)
        second = threading.Thread(
            target=lambda: found.extend(
                nudge.run_id
                for nudge in sweep.due_nudges(stepping.runtime, stepping.short, [DEFAULT], 4)
            )
        )
        second.start()
        second.join(20)
        assert not second.is_alive()  # It waits for no lock.
    assert sorted([row.id for row in first] + found) == ids


# Taken up


def free_orphans(stepping: Stepping) -> list[Nudge]:
    with stepping.short() as connection:
        claims = reads.orphans(connection, 100)
    return sweep.free(stepping.runtime, stepping.short, claims, "the worker is gone")


def test_what_dead_workers_hold_is_taken_up(stepping: Stepping) -> None:
    worker(stepping, "alive", 30)
    worker(stepping, "silent", -0.1)
    held = {}
    for worker_id in ("alive", "silent", "never seen", None):
        claim = claimed(stepping, worker_id=worker_id)
        held[claim.id] = worker_id
    waiting = stepping.start(end)
    nudges = free_orphans(stepping)
    assert {held[nudge.run_id] for nudge in nudges} == {"silent", "never seen", None}
    for nudge in nudges:
        row = stepping.row(nudge.run_id)
        assert (row.status, row.version, row.crashes) == (Status.WAITING, nudge.version, 1)
        assert (row.worker_id, row.pid, row.retries, row.attempt) == (None, None, 0, 1)
        assert row.error == "Crash: the worker is gone"
        assert stepping.history(row.id) == [("end", 1, StepStatus.CRASHED)]
        stepping.advance(row.id)
        assert stepping.row(row.id).attempt == 2
    assert stepping.row(waiting).crashes == 0
    assert free_orphans(stepping) == []
    assert stepping.notes() == ["end"] * 3


def test_crashes_wait_longer_and_fail_in_the_end(sqlite_stepping: Stepping) -> None:
    runtime, short = sqlite_stepping.runtime, sqlite_stepping.short
    claim = claimed(sqlite_stepping)
    delays = []
    for crash in range(1, 6):
        nudges = sweep.free(runtime, short, [claim], "it died")
        row = sqlite_stepping.row(claim.id)
        assert (row.crashes, row.retries) == (crash, 0)
        if crash == 5:
            break
        delays.append((row.due_at - row.updated_at).total_seconds())
        assert [nudge.countdown for nudge in nudges] == [pytest.approx(delays[-1], abs=0.01)]
        with own_transaction(runtime) as connection:
            again = moves.claim(
                connection, row.id, row.version, worker_id="w", pid=1, ignore_due=True
            )
        assert again is not None
        claim = again
    for delay, longest in zip(delays, (0, 1, 2, 4), strict=True):
        assert 0.8 * longest - 0.01 <= delay <= longest + 0.01
    assert (row.status, row.error, nudges) == (Status.FAILED, "Crash: it died", [])
    assert [end for _, _, end in sqlite_stepping.history(row.id)] == [StepStatus.CRASHED] * 5


def test_a_long_delay_is_left_to_the_sweep(sqlite_stepping: Stepping) -> None:
    claim = claimed(sqlite_stepping, crashes=3)
    sqlite_stepping.runtime.settings.__dict__["max_crashes"] = 10
    claim = claimed(sqlite_stepping, crashes=8)
    assert sweep.free(sqlite_stepping.runtime, sqlite_stepping.short, [claim], "it died") == []
    assert sqlite_stepping.row(claim.id).status is Status.WAITING


def test_progress_forgets_crashes(sqlite_stepping: Stepping) -> None:
    def fail(step: t.Any) -> None:
        raise ValueError

    finishes = sqlite_stepping.start(end, make_step(end, "last"))
    fails = sqlite_stepping.start(make_step(fail, default_retry_delay=0))
    for run_id, crashes in ((finishes, 0), (fails, 3)):
        sqlite_stepping.set(run_id, crashes=3)
        make_sequence(end, make_step(end, "last"), make_step(fail, default_retry_delay=0))
        sqlite_stepping.advance(run_id)
        assert sqlite_stepping.row(run_id).crashes == crashes


def test_a_run_that_moved_meanwhile_is_not_taken(sqlite_stepping: Stepping) -> None:
    claim = claimed(sqlite_stepping)
    sqlite_stepping.set(claim.id, version=claim.version + 1)
    before = sqlite_stepping.row(claim.id)
    assert sweep.free(sqlite_stepping.runtime, sqlite_stepping.short, [claim], "it died") == []
    assert sqlite_stepping.row(claim.id) == before
    assert sqlite_stepping.history(claim.id) == []


def test_one_transaction_takes_up_a_batch(stepping: Stepping) -> None:
    claims = [claimed(stepping) for _ in range(5)]
    opened: list[int] = []

    @contextlib.contextmanager
    def connect() -> t.Iterator[t.Any]:
        opened.append(1)
        with stepping.short() as connection:
            yield connection

    nudges = sweep.free(stepping.runtime, connect, claims, "it died")
    assert sorted(nudge.run_id for nudge in nudges) == [claim.id for claim in claims]
    assert {stepping.row(claim.id).status for claim in claims} == {Status.WAITING}
    assert len(opened) == 1
    assert sweep.free(stepping.runtime, connect, [], "it died") == []
    assert len(opened) == 1


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_run_that_is_being_written_keeps_no_other_waiting(
    request: pytest.FixtureRequest, kind: str
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    first, second = claimed(stepping), claimed(stepping)
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).where(runs.c.id == first.id).values(error="x"))
        nudges = sweep.free(stepping.runtime, stepping.short, [first, second], "it died")
        assert [nudge.run_id for nudge in nudges] == [second.id]
    nudges = sweep.free(stepping.runtime, stepping.short, [first, second], "it died")
    assert [nudge.run_id for nudge in nudges] == [first.id]


def test_a_run_that_cannot_be_taken_up_spoils_no_other(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claims = [claimed(stepping) for _ in range(3)]
    crash = moves.crash

    def refuse_second(connection: t.Any, claim: Claim, **values: t.Any) -> bool:
        if claim.id == claims[1].id:
            connection.exec_driver_sql("SELECT nothing FROM sequence_runs")
        return crash(connection, claim, **values)

    monkeypatch.setattr(moves, "crash", refuse_second)
    nudges = sweep.free(stepping.runtime, stepping.short, claims, "it died")
    assert [nudge.run_id for nudge in nudges] == [claims[0].id, claims[2].id]
    states = [stepping.row(claim.id).status for claim in claims]
    assert states == [Status.WAITING, Status.RUNNING, Status.WAITING]
    assert f"Run {claims[1].id}, step Made.end, attempt 1 cannot be taken up" in caplog.text


def test_a_crash_that_the_database_asks_to_note_again(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed(sqlite_stepping)
    error = sa.exc.DBAPIError("UPDATE", {}, Exception(), connection_invalidated=True)

    def crash(*_: t.Any, **__: t.Any) -> t.NoReturn:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(moves, "crash", crash)
        with pytest.raises(sa.exc.DBAPIError):
            sweep.free(sqlite_stepping.runtime, sqlite_stepping.short, [claim], "gone")
    assert sqlite_stepping.row(claim.id).crashes == 0
    sweep.free(sqlite_stepping.runtime, sqlite_stepping.short, [claim], "gone")
    assert sqlite_stepping.row(claim.id).crashes == 1


def test_an_unknown_step_that_crashed(sqlite_stepping: Stepping) -> None:
    claim = claimed(sqlite_stepping, sequence="Unknown")
    assert sweep.free(sqlite_stepping.runtime, sqlite_stepping.short, [claim], "it died") == []
    assert sqlite_stepping.row(claim.id).status is Status.WAITING


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (59.0, "Crash: it died"),
        (60.5, "TimeLimitExceeded: the step took longer than its time limit of 60 s"),
    ],
)
def test_a_hard_time_limit_is_a_crash_that_says_so(
    stepping: Stepping, ago: float, text: str
) -> None:
    claim = claimed(stepping, make_step(end, time_limit=60), ago=ago)
    sweep.free(stepping.runtime, stepping.short, [claim], "it died")
    assert stepping.row(claim.id).error == text


# Blocked


def test_unknown_steps_are_blocked_after_two_intervals_and_freed(
    stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {stepping.start(end): name for name in ("old", "old, too", "other", "fresh", "known")}
    for run_id, name in ids.items():
        values: dict[str, t.Any] = {} if name == "known" else {"step": "renamed"}
        values["due_at"] = later(-6 if name == "fresh" else -10.5)
        stepping.set(run_id, **values, **({"queue": "other"} if name == "other" else {}))
    caplog.set_level("INFO")
    sweep.mark_unknown(stepping.runtime, stepping.short, [DEFAULT])
    blocked = {name for run_id, name in ids.items() if stepping.row(run_id).status == "blocked"}
    assert blocked == {"old", "old, too"}
    rows = [stepping.row(run_id) for run_id in ids]
    assert rows[0].error == (
        "No worker knows the step 'renamed' of the sequence 'Made'."
        " Does SEQUENCE_IMPORTS name the module that defines it?"
    )
    assert (rows[0].version, rows[0].attempt, rows[0].due_at) == (1, 0, None)
    assert "2 runs are blocked" in caplog.text
    assert stepping.advance(rows[0].id).status is None

    make_sequence(end, make_step(end, "renamed"))
    sweep.mark_unknown(stepping.runtime, stepping.short, ["elsewhere"])
    row = stepping.row(rows[0].id)
    assert (row.status, row.error, row.version) == (Status.WAITING, None, 2)
    assert "2 runs at Made.renamed go on" in caplog.text
    nudges = sweep.due_nudges(stepping.runtime, stepping.short, [DEFAULT], 100)
    assert {rows[0].id, rows[1].id} <= {nudge.run_id for nudge in nudges}
    assert stepping.advance(row.id).status is Status.FINISHED


def test_the_sentence_for_a_blocked_run_names_the_setting_where_it_may_help(
    make_app: t.Callable[..., Flask], sqlite_url: str
) -> None:
    stepping = Stepping(make_app(sqlite_url, SEQUENCE_IMPORTS=("tests.support.starts",)))
    run_id = stepping.start(end)
    stepping.set(run_id, step="x", due_at=later(-60))
    sweep.mark_unknown(stepping.runtime, stepping.short, [DEFAULT])
    assert stepping.row(run_id).error == "No worker knows the step 'x' of the sequence 'Made'."


# Deleted


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
    monkeypatch.setattr(sweep, "PURGED_AT_ONCE", 2)
    old = [ended(stepping, 1001), ended(stepping, 3000, Status.CANCELLED), ended(stepping, 1002)]
    young = [ended(stepping, 900), ended(stepping, 5000, Status.FAILED), stepping.start(end)]
    worker(stepping, "silent", -sweep.GONE_SECONDS - 1)
    worker(stepping, "perhaps", -sweep.GONE_SECONDS + 60)
    monkeypatch.setattr(sweep, "PURGE_SECONDS", 0)
    assert sweep.purge(stepping.runtime, stepping.short)  # There is more.
    assert len(kept(stepping)) == 4
    assert not sweep.purge(stepping.runtime, stepping.short)
    assert (kept(stepping), len(old)) == (young, 3)
    with stepping.connect() as connection:
        left = set(connection.execute(sa.select(workers.c.id)).scalars())
    assert left == {"perhaps", stepping.runtime.worker_id}


@pytest.mark.parametrize(("retention", "left"), [(0, 0), (None, 1), (100, 1)])
def test_a_run_is_deleted_right_after_its_end_if_wanted(
    make_app: t.Callable[..., Flask], sqlite_url: str, retention: int | None, left: int
) -> None:
    stepping = Stepping(make_app(sqlite_url, SEQUENCE_RETENTION=retention))
    run_id = stepping.start(end)
    sweep.delete_if_ended(stepping.runtime, run_id, Status.FINISHED)  # It has not, in truth.
    assert kept(stepping) == [run_id]
    outcome = stepping.advance(run_id)
    sweep.delete_if_ended(stepping.runtime, run_id, Status.FAILED)
    assert kept(stepping) == [run_id]
    sweep.delete_if_ended(stepping.runtime, run_id, outcome.status)
    assert len(kept(stepping)) == left
    cancelled = ended(stepping, 10**8, Status.CANCELLED)
    sweep.purge(stepping.runtime, stepping.short)
    assert (cancelled in kept(stepping)) is (retention is None)


def test_a_deletion_that_fails_is_left_to_the_sweep(
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
    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "delete", fail)
        sweep.delete_if_ended(stepping.runtime, run_id, Status.FINISHED)
        with pytest.raises(sa.exc.TimeoutError):
            sweep.purge(stepping.runtime, stepping.short)
    assert "left to the sweep to delete: TimeoutError: no connection" in caplog.text
    sweep.purge(stepping.runtime, stepping.short)
    assert kept(stepping) == []


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
    sweep.purge(stepping.runtime, stepping.short)
    assert kept(stepping) == [needed] != [free]
    row = stepping.row(needed)
    assert (row.status, dict(row.data), row.format) == (Status.FINISHED, {}, 0)
    assert stepping.history(needed) == []
    assert f"Run {needed} is kept" in caplog.text
    caplog.clear()
    sweep.purge(stepping.runtime, stepping.short)
    assert "is kept" not in caplog.text  # Reported once.


def sweep_engine(stepping: Stepping) -> sa.Engine:
    bind = stepping.app.extensions["sqlalchemy"].engines[None]
    assert isinstance(bind, sa.Engine)
    bind.dispose()
    return bind


def test_times_are_the_database_s(stepping: Stepping) -> None:
    run_id = stepping.start(end)
    with stepping.connect() as connection:
        now = connection.scalar(sa.select(clock()))
    row = stepping.row(run_id)
    for value in (row.created_at, row.due_at, row.published_at, row.updated_at):
        assert abs((value - now).total_seconds()) < 5
