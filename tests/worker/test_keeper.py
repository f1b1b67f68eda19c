"""The keeper: its rounds, what it tells of its duties, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.config import Settings
from flask_sequence.engine.connections import own_transaction
from flask_sequence.rows import moves
from flask_sequence.rows.models import workers
from flask_sequence.runtime import runtime_of
from flask_sequence.worker import keeper as keeper_module
from flask_sequence.worker.duties import DUTIES, RENEW_LEASE
from flask_sequence.worker.duties.duty import Duty, Work
from flask_sequence.worker.keeper import Keeper
from flask_sequence.worker.signals import limited_steps
from tests.support.application import db
from tests.support.keeping import Keeping
from tests.support.logs import level_of
from tests.support.stepping import Stepping, note
from tests.support.waiting import wait_until
from tests.support.working import WorkHard

if t.TYPE_CHECKING:
    from flask import Flask

MakeApp = t.Callable[..., "Flask"]


def made(name: str, work: Work, *, interval: float | None = 0.0, **more: t.Any) -> Duty:
    """Make a duty."""
    bounds: dict[str, t.Any] = {"seconds": 5.0, "rows": 1, **more}
    return Duty(name=name, begin=lambda post: work, interval=lambda settings: interval, **bounds)


@pytest.fixture
def keep(make_app: MakeApp, sqlite_url: str) -> t.Callable[..., Keeper]:
    """What makes a keeper that has some duties."""

    def make(*duties: Duty, **config: t.Any) -> Keeper:
        return Keeping(
            runtime_of(make_app(sqlite_url, **config)), duties=duties, is_patient=False
        ).keeper

    return make


def test_what_is_due_is_done_in_order_once_a_round(keep: t.Callable[..., Keeper]) -> None:
    done: list[str] = []
    keeper = keep(
        made("first", lambda: done.append("first")),
        made("rarely", lambda: done.append("rarely"), interval=60),
        made("not here", lambda: done.append("not here"), interval=None),
        made("last", lambda: done.append("last")),
    )
    for _ in range(2):
        keeper.round()
    assert done == ["first", "rarely", "last", "first", "last"]


def test_what_is_urgent_waits_for_one_other_at_most(
    keep: t.Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done: list[tuple[str, float]] = []

    def work(name: str, seconds: float = 0.0) -> t.Callable[[], None]:
        def take() -> None:
            done.append((name, now[0] - 1000))
            now[0] += seconds

        return take

    keeper = keep(
        made("urgent", work("urgent"), interval=1.0, is_urgent=True),
        made("long", work("long", 2.0), interval=60),
        made("as long", work("as long", 2.0), interval=60),
        made("short", work("short"), interval=60),
    )
    keeper.round()
    assert done == [
        *(("urgent", 0), ("long", 0)),
        *(("urgent", 2), ("as long", 2)),
        *(("urgent", 4), ("short", 4)),
    ]


def test_the_lease_is_urgent() -> None:
    assert [duty for duty in DUTIES if duty.is_urgent] == [RENEW_LEASE]


def test_a_duty_may_be_called_before_its_time(keep: t.Callable[..., Keeper]) -> None:
    done: list[int] = []
    calls = iter([False, True, False])
    duty = made("work", lambda: done.append(1), interval=3600.0, is_called=lambda post: next(calls))
    keeper = keep(duty)
    counts = []
    for _ in range(4):  # the first time it is due
        keeper.round()
        counts.append(len(done))
    assert counts == [1, 1, 2, 2]


def test_a_duty_may_want_to_go_on_soon(keep: t.Callable[..., Keeper]) -> None:
    wanted = iter([0.0, 0.0, None])
    done: list[int] = []

    def work() -> float | None:
        done.append(1)
        return next(wanted)

    keeper = keep(made("work", work, interval=3600.0))
    for _ in range(5):
        pause = keeper.round()
    assert len(done) == 3
    assert 3500 < pause <= 3600


@pytest.mark.parametrize(
    "error", [ValueError("broken"), OSError("away"), SystemExit("over")], ids=str
)
def test_a_duty_that_fails_keeps_no_other_from_its_turn(
    keep: t.Callable[..., Keeper], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    done: list[str] = []

    def fail() -> t.NoReturn:
        done.append("fail")
        raise error

    keeper = keep(
        made("fail always", fail),
        made("work", lambda: done.append("work")),
        made("fail, too", fail),
        SEQUENCE_SWEEP_SECONDS=60,
    )
    for _ in range(3):
        keeper.round()
    assert done == ["fail", "work", "fail"] * 3
    told = f"The keeper could not fail always, fail, too: {type(error).__name__}: {error}"
    assert [record.getMessage() for record in caplog.records] == [told]
    assert level_of(caplog, told) == "WARNING"


def test_a_duty_that_fails_is_named_once_an_interval(
    keep: t.Callable[..., Keeper],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def fail() -> t.NoReturn:
        raise ValueError

    keeper = keep(
        made("look", fail, interval=1.0),
        made("tidy", fail, interval=60.0, retry=1.0),
        SEQUENCE_SWEEP_SECONDS=5,
    )
    for _ in range(61):
        keeper.round()
        now[0] += 1.0
    told = [record.getMessage() for record in caplog.records]
    assert sum("look" in text for text in told) == 13  # as often as it sweeps
    assert sum("tidy" in text for text in told) == 2


def test_a_failed_duty_is_tried_again(keep: t.Callable[..., Keeper]) -> None:
    done: list[str] = []

    def fail(name: str) -> t.NoReturn:
        done.append(name)
        raise ValueError

    keeper = keep(
        made("soon", lambda: fail("soon"), interval=60.0, retry=0.0),
        made("later", lambda: fail("later"), interval=60.0),
    )
    for _ in range(3):
        keeper.round()
    assert done == ["soon", "later", "soon", "soon"]


def test_a_duty_that_overruns_its_time_is_named(
    keep: t.Callable[..., Keeper],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def work() -> None:
        now[0] += 4.0

    keep(made("work", work, seconds=2.0), made("play", work, seconds=3.5)).round()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "The keeper was slow to work: it took 4.0 s, and should take at most 2 s"


def test_a_database_that_lacks_the_tables(
    make_app: MakeApp, empty_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(runtime_of(make_app(empty_database_url)), is_patient=False)
    for _ in range(2):
        keeping.keeper.round()
    assert "'flask db upgrade'" in caplog.text
    for duty in DUTIES:
        assert caplog.text.count(duty.name) <= 1
    assert RENEW_LEASE.name in caplog.text


def test_steps_with_limits_are_named_where_they_may_come(
    make_app: MakeApp, sqlite_url: str
) -> None:
    runtime = runtime_of(make_app(sqlite_url))
    assert WorkHard.step_names[0] == "HardLimit"
    found = limited_steps(runtime, {"celery"})
    assert {"WorkHard.HardLimit", "WorkSoft.SoftLimit"} <= set(found)
    assert "WorkTwo.First" not in found
    assert limited_steps(runtime, {"mail-of-this-test"}) == []


def test_the_thread_ends_in_the_middle_of_a_round(keep: t.Callable[..., Keeper]) -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(20)

    keeper = keep(made("work", work), made("more", lambda: done.append("more")))
    keeper.start()
    assert begun.wait(20)
    stopping = threading.Thread(target=keeper.stop)
    stopping.start()
    wait_until(keeper._stopped.is_set)
    go.set()
    stopping.join(20)
    assert not keeper.is_alive()
    assert done == []


def note_step(step: t.Any) -> None:
    note("step")


def test_a_keeper_that_stops_leaves_nothing_behind(stepping: Stepping) -> None:
    run_id = stepping.start(note_step)
    keeping = Keeping(stepping.runtime)
    keeping.do(RENEW_LEASE)
    with own_transaction(stepping.runtime) as connection:
        worker_id = stepping.runtime.worker_id
        assert moves.claim(connection, run_id, 0, worker_id=worker_id, pid=4711)
    keeping.keeper.post.begin(seconds=-60.0, rows=0)  # the last duty has had its time
    keeping.keeper.post._until = 0.0
    keeping.keeper.stop()
    row = stepping.row(run_id)
    assert (row.status, row.error) == (
        Status.WAITING,
        "Crash: the worker was shut down (crash 1 of 5)",
    )
    with stepping.connect() as connection:
        assert connection.scalars(sa.select(workers.c.id)).all() == []


def record_connections(stepping: Stepping) -> tuple[list[t.Any], list[t.Any]]:
    """Record the connections that are opened and closed from now on."""
    opened: list[t.Any] = []
    closed: list[t.Any] = []
    with stepping.app.app_context():
        engine = stepping.app.extensions["sqlalchemy"].engines[None]
    sa.event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    sa.event.listen(engine, "close", lambda connection, _: closed.append(connection))
    return opened, closed


def test_a_round_takes_one_connection_and_leaves_none(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "KEEP_SECONDS", -60.0)  # rounds are slow here
    keeping = Keeping(stepping.runtime)
    opened, closed = record_connections(stepping)
    keeping.keeper.round()
    assert len(opened) == 1
    assert closed == opened


def test_a_keeper_that_has_to_go_on_soon_keeps_its_connection(sqlite_stepping: Stepping) -> None:
    keeping = Keeping(sqlite_stepping.runtime)
    opened, closed = record_connections(sqlite_stepping)
    keeping.publisher.waiting = 1000  # it is hungry
    for _ in range(3):
        keeping.keeper.round()
    assert (len(opened), closed) == (1, [])
    keeping.keeper.stop()
    assert closed == opened


def test_the_table_of_duties() -> None:
    settings = Settings()
    shown = [(duty.name, duty.interval(settings), duty.seconds, duty.rows) for duty in DUTIES]
    assert shown == [
        ("renew the lease of its worker", 10.0, 2.0, 1),
        ("take over from dead processes of its worker", 0.5, 2.0, 500),
        ("take back what nobody works on", 5.0, 2.0, 500),
        ("take over from what has died on this host", 5.0, 2.0, 500),
        ("take over from dead workers", 5.0, 2.0, 500),
        ("publish what is due", 5.0, 2.0, 1000),
        ("let processes end in a shutdown", 0.5, 0.1, 0),
        ("block what no worker knows", 5.0, 1.0, 1000),
        ("unblock what is known again", 5.0, 1.0, 5000),
        ("look after queues that nobody consumes", 5.0, 1.0, 1000),
        ("remove the rows of dead workers", 60.0, 1.0, 500),
        ("notice code that has changed", 5.0, 1.0, 0),
        ("purge what ended long ago", 5.0, 1.0, 5000),
    ]
    without_sweep = dataclasses.replace(settings, sweep_seconds=None)
    assert [duty.name for duty in DUTIES if duty.interval(without_sweep) is not None] == [
        "renew the lease of its worker",
        "take over from dead processes of its worker",
        "take back what nobody works on",
        "let processes end in a shutdown",
    ]
    assert [duty.retry for duty in DUTIES] == [0.5] + [None] * 12


def test_a_listener_that_fails_as_the_connection_goes_does_not_end_it(
    make_app: MakeApp, postgresql_url: str
) -> None:
    stepping = Stepping(make_app(postgresql_url))
    keeper = Keeping(stepping.runtime, duties=[RENEW_LEASE], is_patient=False).keeper
    with stepping.app.app_context():
        engine = db.engine

    def refuse(*_: object) -> t.NoReturn:
        raise ValueError("not taken back")

    number = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def connections() -> int:
        with stepping.connect() as connection:
            return int(connection.scalar(number) or 0)

    before = connections()
    keeper.perform(RENEW_LEASE)
    assert connections() == before + 1
    sa.event.listen(engine, "checkin", refuse)
    keeper.post.disconnect()
    sa.event.remove(engine, "checkin", refuse)
    wait_until(lambda: connections() == before)
    keeper.perform(RENEW_LEASE)
    keeper.post.disconnect()


def test_nothing_ends_the_thread_but_its_worker(
    keep: t.Callable[..., Keeper],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = threading.Event()
    keeper = keep(made("work", done.set), SEQUENCE_SWEEP_SECONDS=0.1)
    rounds = iter([ValueError("beside the duties")])
    real = keeper.round

    def round_() -> float:
        for error in rounds:
            raise error
        return real()

    monkeypatch.setattr(keeper, "round", round_)
    keeper.start()
    assert done.wait(10)
    keeper.stop()
    assert "The keeper failed outside its duties, and continues" in caplog.messages
