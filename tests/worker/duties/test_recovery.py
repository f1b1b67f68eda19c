"""What dead processes held is taken up."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import typing as t
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from flask_sequence import Status, StepStatus
from flask_sequence.engine.connections import own_transaction
from flask_sequence.engine.in_hand import InHand
from flask_sequence.engine.processes import here
from flask_sequence.rows import moves, reads, upkeep
from flask_sequence.rows.claims import Held
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import runs, step_runs
from flask_sequence.runtime import Nudge
from flask_sequence.worker.duties import (
    FREE_NEIGHBOURS,
    FREE_ORPHANS,
    FREE_OWN,
    TAKE_BACK,
    recovery,
)
from tests.support.keeping import Keeping, spoil_time
from tests.support.logs import level_of
from tests.support.stepping import Stepping, be_worker, make_sequence, make_step, note
from tests.support.strangers import Stranger

if t.TYPE_CHECKING:
    from flask import Flask

MakeApp = t.Callable[..., "Flask"]

GONE = "Crash: the worker that ran the step is gone (crash 1 of 5)"


def end(step: t.Any) -> None:
    note("end")


def claimed(stepping: Stepping, *steps: t.Any, ago: float = 0.0, **values: t.Any) -> Held:
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


def free_orphans(stepping: Stepping) -> list[Nudge]:
    return Keeping(stepping.runtime).do(FREE_ORPHANS)


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
        assert row.error == GONE
        assert stepping.history(row.id) == [("end", 1, StepStatus.CRASHED)]
        (label,) = labels(stepping, row.id)
        host = {"silent": "host", None: "?"}.get(held[row.id], held[row.id])
        assert label == f"{host}:4711"
        stepping.advance(row.id)
        assert stepping.row(row.id).attempt == 2
    assert stepping.row(waiting).crashes == 0
    assert free_orphans(stepping) == []
    assert stepping.notes() == ["end"] * 3


def labels(stepping: Stepping, run_id: int) -> list[str]:
    with stepping.connect() as connection:
        told = sa.select(step_runs.c.worker).where(step_runs.c.run_id == run_id)
        return list(connection.execute(told).scalars())


def test_crashes_wait_longer_and_fail_in_the_end(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = sqlite_stepping.runtime
    claim = claimed(sqlite_stepping)
    delays = []
    for crash in range(1, 6):
        nudges = free_orphans(sqlite_stepping)
        row = sqlite_stepping.row(claim.id)
        assert (row.crashes, row.retries) == (crash, 0)
        assert level_of(caplog, f"(crash {crash} of 5") == ("ERROR" if crash == 5 else "WARNING")
        if crash == 5:
            break
        delays.append((row.due_at - row.updated_at).total_seconds())
        assert [nudge.countdown for nudge in nudges] == [pytest.approx(delays[-1], abs=0.01)]
        with own_transaction(runtime) as connection:
            again = moves.claim(
                connection, row.id, row.version, worker_id="w", pid=1, ignore_due=True
            )
        assert again is not None
    for delay, longest in zip(delays, (0, 1, 2, 4), strict=True):
        assert 0.8 * longest - 0.01 <= delay <= longest + 0.01
    assert (row.status, nudges) == (Status.FAILED, [])
    assert row.error == GONE.replace("1 of 5", "5 of 5: as many as SEQUENCE_MAX_CRASHES allows")
    assert [end for _, _, end in sqlite_stepping.history(row.id)] == [StepStatus.CRASHED] * 5


def test_a_long_delay_is_left_to_the_sweep(sqlite_stepping: Stepping) -> None:
    sqlite_stepping.runtime.settings.__dict__["max_crashes"] = 10
    claim = claimed(sqlite_stepping, crashes=8)
    assert free_orphans(sqlite_stepping) == []
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


def test_a_run_that_moved_meanwhile_is_not_taken(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed(sqlite_stepping)
    sqlite_stepping.set(claim.id, version=claim.version + 1)
    before = sqlite_stepping.row(claim.id)
    monkeypatch.setattr(reads, "orphans", lambda connection, **_: [claim])
    assert free_orphans(sqlite_stepping) == []
    assert sqlite_stepping.row(claim.id) == before
    assert sqlite_stepping.history(claim.id) == []


def test_more_runs_than_a_pass_may_read(stepping: Stepping) -> None:
    claims = [claimed(stepping) for _ in range(5)]
    keeping = Keeping(
        stepping.runtime, duties=[narrow := dataclasses.replace(FREE_ORPHANS, rows=2)]
    )
    found = [[nudge.run_id for nudge in keeping.do(narrow)] for _ in range(3)]
    ids = [claim.id for claim in claims]
    assert found == [ids[:2], ids[2:4], ids[4:]]
    assert {stepping.row(claim.id).status for claim in claims} == {Status.WAITING}


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_run_that_is_being_written_keeps_no_other_waiting(
    request: pytest.FixtureRequest, kind: str
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    first, second = claimed(stepping), claimed(stepping)
    with stepping.connect() as connection:
        connection.execute(sa.update(runs).where(runs.c.id == first.id).values(error="x"))
        nudges = free_orphans(stepping)
        assert [nudge.run_id for nudge in nudges] == [second.id]
    nudges = free_orphans(stepping)
    assert [nudge.run_id for nudge in nudges] == [first.id]


def test_a_run_that_cannot_be_taken_up_spoils_no_other(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claims = [claimed(stepping) for _ in range(3)]
    make = moves.make

    def refuse_second(connection: t.Any, claim: t.Any, move: moves.Move) -> bool:
        if claim.id == claims[1].id:
            connection.exec_driver_sql("SELECT nothing FROM sequence_runs")
        return make(connection, claim, move)

    monkeypatch.setattr(moves, "make", refuse_second)
    keeping = Keeping(stepping.runtime)
    nudges = keeping.do(FREE_ORPHANS)
    assert [nudge.run_id for nudge in nudges] == [claims[0].id, claims[2].id]
    states = [stepping.row(claim.id).status for claim in claims]
    assert states == [Status.WAITING, Status.RUNNING, Status.WAITING]
    told = f"Run {claims[1].id}, step Made.end, attempt 1 cannot be taken over"
    assert level_of(caplog, told) == "ERROR"
    with pytest.raises(sa.exc.DBAPIError):  # it is named in the log by the keeper
        keeping.do(FREE_ORPHANS)
    assert caplog.text.count(told) == 1
    monkeypatch.undo()
    assert [nudge.run_id for nudge in keeping.do(FREE_ORPHANS)] == [claims[1].id]


def test_an_unknown_step_that_crashed(sqlite_stepping: Stepping) -> None:
    claim = claimed(sqlite_stepping, sequence="Unknown")
    assert free_orphans(sqlite_stepping) == []
    assert sqlite_stepping.row(claim.id).status is Status.WAITING


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (59.0, GONE),
        (60.5, f"TimeLimitExceeded: the step took longer than its time limit of 60 s {GONE[-14:]}"),
    ],
)
def test_a_hard_time_limit_is_a_crash_that_says_so(
    stepping: Stepping, ago: float, text: str
) -> None:
    claim = claimed(stepping, make_step(end, time_limit=60), ago=ago)
    free_orphans(stepping)
    assert stepping.row(claim.id).error == text


# Workers of this host, which need not be waited for


@pytest.mark.skipif(here() is None, reason="the numbers of processes may be of another place")
def test_what_dead_processes_of_this_host_held_is_taken_up_before_the_lease_is_over(
    stepping: Stepping,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    me, elsewhere = os.getpid(), "another boot"
    holders = {
        "dead": (gone.pid, here(), gone.pid),
        "its process lives on": (gone.pid, here(), me),
        "alive": (me, here(), gone.pid),  # its own keeper sees to that
        "elsewhere": (gone.pid, elsewhere, gone.pid),
        "silent about it": (gone.pid, None, gone.pid),
    }
    held = {}
    for name, (main, place, pid) in holders.items():
        with own_transaction(stepping.runtime) as connection:
            upkeep.renew_worker(connection, name, host="h", pid=main, lease=30, place=place)
        held[claimed(stepping, worker_id=name, pid=pid).id] = name
    keeping = Keeping(stepping.runtime)
    nudges = keeping.do(FREE_NEIGHBOURS)
    assert [held[nudge.run_id] for nudge in nudges] == ["dead"]
    row = stepping.row(nudges[0].run_id)
    assert (row.status, row.crashes, row.error) == (Status.WAITING, 1, GONE)
    assert keeping.do(FREE_NEIGHBOURS) == []


# The keeper's own worker, after an outage longer than its lease


def lapsed(stepping: Stepping) -> tuple[Keeping, Held, Held]:
    """Return a keeper that could not renew its lease, a run of its worker, and one of another."""
    keeping = Keeping(stepping.runtime)
    mine = stepping.runtime.worker_id
    assert mine is not None
    worker(stepping, mine, -0.1)
    own = claimed(stepping, worker_id=mine, pid=os.getpid())
    return keeping, own, claimed(stepping)


def test_a_keeper_frees_nothing_of_its_own_worker(stepping: Stepping) -> None:
    """Even where it has its turn before the lease is renewed."""
    keeping, own, other = lapsed(stepping)
    before = stepping.row(own.id)
    assert [nudge.run_id for nudge in keeping.do(FREE_ORPHANS)] == [other.id]
    assert stepping.row(own.id) == before
    assert stepping.history(own.id) == []


def test_a_keeper_renews_its_lease_before_it_looks_for_orphans(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, _, other = lapsed(sqlite_stepping)
    found: list[list[int]] = []
    orphans = reads.orphans

    def look(connection: t.Any, **bounds: t.Any) -> list[Held]:
        held = orphans(connection, **bounds)
        found.append([claim.id for claim in held])
        return held

    monkeypatch.setattr(reads, "orphans", look)
    keeping.keeper.round()
    assert found == [[other.id]]


# The processes of the keeper's own worker


@pytest.fixture
def keeping(make_app: MakeApp, sqlite_url: str) -> Keeping:
    """A keeper that does not sweep."""
    return Keeping(Stepping(make_app(sqlite_url, SEQUENCE_SWEEP_SECONDS=None)).runtime)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The living processes of the pool."""
    alive: set[int] = set()
    monkeypatch.setattr(recovery, "live_processes", lambda pool: set(alive))
    return alive


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The keeper's clock, by which it looks after processes."""
    now = [1000.0]
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def looks(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the looks at the database."""
    looked: list[str] = []
    held_by = reads.held_by

    def look(connection: t.Any, worker_id: str, **bounds: t.Any) -> list[Held]:
        looked.append(worker_id)
        return held_by(connection, worker_id, **bounds)

    monkeypatch.setattr(reads, "held_by", look)
    return looked


def test_it_looks_when_a_process_has_gone_and_now_and_then(
    keeping: Keeping,
    children: set[int],
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = looks(keeping, monkeypatch)

    def looks_in(seconds: float) -> int:
        before, until = len(looked), clock[0] + seconds
        while clock[0] < until:
            keeping.do(FREE_OWN)
            clock[0] += 0.5
        return len(looked) - before

    looks_in(60)
    assert looks_in(60) == 2  # once a lease
    children.add(2)
    assert looks_in(10) == 11
    children.remove(2)
    children.add(3)  # of one that came and went between two looks no more is seen
    assert looks_in(10) == 11


def test_the_watch_lasts_until_a_look_has_succeeded(
    keeping: Keeping,
    children: set[int],
    clock: list[float],
    sqlite_stepping: Stepping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process dies while the database is away, for longer than the watch lasts."""
    children.add(4711)
    keeping.do(FREE_OWN)
    clock[0] += 60
    keeping.do(FREE_OWN)
    run_id = sqlite_stepping.start(end)
    with own_transaction(sqlite_stepping.runtime) as connection:
        moves.claim(connection, run_id, 0, worker_id=keeping.runtime.worker_id, pid=4711)
    children.clear()
    with monkeypatch.context() as patch:
        patch.setattr(keeping.keeper.post, "connect", away)
        for _ in range(100):
            clock[0] += 0.5
            with pytest.raises(OSError, match="away"):
                keeping.do(FREE_OWN)
    clock[0] += 0.5
    assert [nudge.run_id for nudge in keeping.do(FREE_OWN)] == [run_id]
    assert (
        sqlite_stepping.row(run_id).error
        == "Crash: the process that ran the step died (crash 1 of 5)"
    )


def away() -> t.NoReturn:
    raise OSError("away")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_the_watch_lasts_as_long_as_a_dead_process_has_a_lock(
    request: pytest.FixtureRequest, kind: str, children: set[int], clock: list[float]
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    stepping.runtime.settings = dataclasses.replace(
        stepping.runtime.settings, sweep_seconds=None, lease_seconds=3600
    )
    keeping = Keeping(stepping.runtime)
    keeping.do(FREE_OWN)
    run_id = stepping.start(end)
    with own_transaction(stepping.runtime) as connection:
        moves.claim(connection, run_id, 0, worker_id=stepping.runtime.worker_id, pid=4711)
    children.add(1)
    with stepping.connect() as dead:
        dead.execute(sa.update(runs).where(runs.c.id == run_id).values(error="written"))
        for _ in range(20):
            clock[0] += 0.5
            assert keeping.do(FREE_OWN) == []
    clock[0] += 0.5
    assert [nudge.run_id for nudge in keeping.do(FREE_OWN)] == [run_id]


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_row_that_refers_to_a_run_hides_it_where_it_must(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """Of a step that has inserted one, and whose machine is lost, PostgreSQL frees the run."""
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    stranger, claim, other = Stranger(stepping), claimed(stepping), claimed(stepping)
    keeping = Keeping(stepping.runtime)
    with stranger.referring(claim.id):
        freed = [nudge.run_id for nudge in keeping.do(FREE_ORPHANS)]
        assert freed == ([claim.id, other.id] if kind == "postgresql" else [other.id])
    assert len(keeping.do(FREE_ORPHANS)) == 2 - len(freed)


def test_the_pool_replaces_a_dead_child_at_once(keeping: Keeping, children: set[int]) -> None:
    asked: list[object] = []
    keeping.consumer.hub = SimpleNamespace(call_soon=asked.append)
    keeping.consumer.pool.maintain_pool = object()
    children |= {1, 2}
    for _ in range(2):
        keeping.do(FREE_OWN)
    assert asked == []
    children.remove(1)
    keeping.do(FREE_OWN)
    assert asked == [keeping.consumer.pool.maintain_pool]


# A living process that does not work on what it holds


@pytest.mark.parametrize("works", [True, False], ids=["works on it", "does not"])
def test_what_a_living_process_does_not_work_on_is_taken_back(
    stepping: Stepping, works: bool
) -> None:
    worker = be_worker(stepping.app)
    run_id = stepping.start(end)
    with own_transaction(stepping.runtime) as connection:
        moves.claim(connection, run_id, 0, worker_id=worker.id, pid=os.getpid())
    if works:
        worker.in_hand.take(run_id)
    keeping = Keeping(stepping.runtime)
    assert keeping.do(TAKE_BACK) == []  # it may have been claimed just now
    nudges = keeping.do(TAKE_BACK)
    row = stepping.row(run_id)
    if works:
        assert (nudges, row.status) == ([], Status.RUNNING)
        return
    assert [nudge.run_id for nudge in nudges] == [run_id]
    assert (row.status, row.crashes) == (Status.WAITING, 1)
    assert row.error == "Crash: the process that claimed the step does not run it (crash 1 of 5)"


def test_many_threads_have_runs_in_hand() -> None:
    hands, errors = InHand(), list[BaseException]()
    interval = sys.getswitchinterval()

    def take_and_let_go(run_id: int) -> None:
        try:
            for _ in range(2_000):
                hand = hands.take(run_id)
                assert not hands.is_without_hand(os.getpid(), run_id)
                hands.let_go(hand)
        except BaseException as error:
            errors.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take_and_let_go, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert hands.is_without_hand(os.getpid(), 0)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_time_that_python_does_not_know_keeps_nobody_back(
    request: pytest.FixtureRequest, kind: str
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    held = [claimed(stepping) for _ in range(2)]
    with stepping.connect() as connection:
        spoil_time(connection, "step_started_at", held[0].id)
    assert [nudge.run_id for nudge in free_orphans(stepping)] == [claim.id for claim in held]


def test_a_child_tells_what_it_performs(sqlite_stepping: Stepping) -> None:
    hands = be_worker(sqlite_stepping.app).in_hand
    reader, writer = os.pipe()
    ask, answer = os.pipe()
    child = os.fork()
    if child == 0:
        hands.be_child(3)
        hand = hands.take(7)
        hands.let_go(hands.take(8))  # performed in place
        os.write(writer, b".")
        os.read(ask, 1)
        hands.let_go(hand)
        os.write(writer, b".")
        os.read(ask, 1)
        os._exit(0)
    os.read(reader, 1)
    assert not hands.is_without_hand(child, 7)
    assert hands.is_without_hand(child, 8)
    os.write(answer, b".")
    os.read(reader, 1)
    assert hands.is_without_hand(child, 7)
    os.write(answer, b".")
    os.waitpid(child, 0)
    assert not hands.is_without_hand(2**22 + 1, 7)  # of a process without a slot nothing is known


def test_a_pass_goes_on_where_the_last_one_has_stopped(sqlite_stepping: Stepping) -> None:
    """What living processes hold fills the first page, and hides nothing behind it."""
    be_worker(sqlite_stepping.app, "mine")
    alive = [claimed(sqlite_stepping, worker_id="mine", pid=os.getpid()).id for _ in range(2)]
    dead = [claimed(sqlite_stepping, worker_id="mine", pid=4711).id for _ in range(3)]
    few = dataclasses.replace(FREE_OWN, rows=2)
    keeping = Keeping(sqlite_stepping.runtime, duties=[few])
    for _ in range(3):
        keeping.do(few)
    assert {sqlite_stepping.row(run_id).status for run_id in alive} == {Status.RUNNING}
    assert {sqlite_stepping.row(run_id).status for run_id in dead} == {Status.WAITING}
