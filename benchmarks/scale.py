"""What it costs to have very many runs: in a table, waiting, started at once, and to be purged."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import resource
import statistics
import time
import typing as t
from types import SimpleNamespace

import sqlalchemy as sa
from kombu import Queue
from sqlalchemy.pool import NullPool

from benchmarks.contender import LONGEST_SECONDS, Place, Show, new_place
from benchmarks.ours import SEQUENCES, FlaskSequence, db
from benchmarks.report import Figure
from flask_sequence import Status
from flask_sequence.broker.publisher import publisher_of
from flask_sequence.rows import upkeep
from flask_sequence.rows.models import runs
from flask_sequence.runtime import runtime_of
from flask_sequence.worker.duties import (
    BLOCK_UNKNOWN,
    FREE_ORPHANS,
    FREE_OWN,
    PUBLISH_DUE,
    PURGE,
    UNBLOCK_KNOWN,
)
from flask_sequence.worker.keeper import Keeper
from tests.support.filling import analyze, fill
from tests.support.waiting import wait_until

if t.TYPE_CHECKING:
    from flask import Flask

ACTIVE = 1000
BATCH = 10_000
"""How many runs one transaction starts."""
STEPS = 10
LATE = "'2200-01-01'"
RATE = "steps/s"


class Beside(FlaskSequence):
    """flask-sequence, beside rows that are there already.

    :param place: Where it works.
    :param finished: How many finished runs there are; with any, there are active ones too.
    """

    def __init__(self, place: Place, finished: int = 0) -> None:
        super().__init__(place)
        self.finished = finished
        self.active = ACTIVE if finished else 0

    def prepare(self) -> None:
        super().prepare()
        self.engine = sa.create_engine(self.place.database, poolclass=NullPool)
        if self.finished:
            fill(self.engine, self.finished, Status.FINISHED, history=1)
            fill(self.engine, self.active, Status.WAITING, due_at=LATE)
            analyze(self.engine)

    def is_done(self, count: int) -> bool:
        return self.count(Status.WAITING, Status.RUNNING) == self.active

    def count(self, *status: Status) -> int:
        """Count the runs of some statuses."""
        counted = sa.select(sa.func.count()).where(runs.c.status.in_(status))
        with self.engine.connect() as connection:
            return connection.scalar(counted.select_from(runs)) or 0


def place_for(
    options: argparse.Namespace, **settings: t.Any
) -> contextlib.AbstractContextManager[Place]:
    """Give an empty place."""
    return new_place(
        options.database, options.broker, processes=options.processes, settings=settings
    )


SWEEP = (FREE_OWN, FREE_ORPHANS, BLOCK_UNKNOWN, UNBLOCK_KNOWN, PURGE, PUBLISH_DUE)
"""What the keeper does each interval of the sweep."""


def keeper_of(app: Flask) -> Keeper:
    """Make a keeper that no thread runs, of a worker with two slots."""
    runtime = runtime_of(app)
    runtime.stand_in_id = "w0"
    queues = [Queue(runtime.default_queue)]
    consumer: t.Any = SimpleNamespace(
        pool=SimpleNamespace(_pool=None),
        controller=SimpleNamespace(concurrency=2),
        task_consumer=SimpleNamespace(queues=queues),
    )
    return Keeper(runtime, consumer)


def measure_sweep(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """A keeper's pass over a table with very many finished runs, and its statements."""
    with place_for(options) as place:
        ours = Beside(place, options.finished)
        show("fill the table")
        ours.prepare()
        _fill_active(ours)
        keeper = keeper_of(ours.app)
        with ours.app.app_context():
            spent = _statement_times(ours.app.extensions["sqlalchemy"].engine)
        publishing = _timed_publishing(keeper)
        setting = f"{options.finished:,} finished, {3 * ACTIVE:,} active, {options.database}"
        for number in range(options.repeats * 4):
            show(f"pass {number + 1}")
            with ours.engine.begin() as connection:
                connection.execute(
                    sa.update(runs).where(runs.c.step == "s1").values(published_at=None)
                )
            publisher_of(runtime_of(ours.app)).celery.control.purge()
            spent.clear()
            publishing[0] = 0.0
            began = time.perf_counter()
            for duty in SWEEP:
                keeper.perform(duty)
            keeper.post.disconnect()
            taken = 1000 * (time.perf_counter() - began - publishing[0])
            yield Figure("sweep", setting, "a pass, without publishing", taken, "ms")
            yield Figure("sweep", setting, "its statements", sum(map(sum, spent.values())), "ms")
            yield Figure("sweep", setting, "publishing 200 nudges", 1000 * publishing[0], "ms")
        for statement, times in spent.items():
            yield Figure("sweep", "its last pass", f"`{statement}`", statistics.mean(times), "ms")


def _fill_active(ours: Beside) -> None:
    """Have a thousand runs due, a thousand later, and a thousand held by living workers."""
    queue = runtime_of(ours.app).default_queue
    fill(ours.engine, ACTIVE, Status.WAITING, step="s1", queue=f"'{queue}'")
    pid = str(os.getpid())
    fill(ours.engine, ACTIVE, Status.RUNNING, worker_id="concat('w', i % 100)", pid=pid)
    with ours.engine.begin() as connection:
        named = sa.update(runs).where(runs.c.status.in_((Status.WAITING, Status.RUNNING)))
        connection.execute(named.values(sequence=SEQUENCES[STEPS, False].name))
        for number in range(100):
            upkeep.renew_worker(connection, f"w{number}", host="h", pid=1, lease=3600)
    analyze(ours.engine)


def _timed_publishing(keeper: Keeper) -> list[float]:
    publish, spent = keeper.post.publish, [0.0]

    def timed(nudges: t.Any) -> None:
        began = time.perf_counter()
        publish(nudges)
        spent[0] += time.perf_counter() - began

    keeper.post.publish = timed  # type: ignore[method-assign]
    return spent


def _statement_times(engine: sa.Engine) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = collections.defaultdict(list)
    began: list[float] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *_: began.append(time.perf_counter()))

    def record(conn: t.Any, cursor: t.Any, statement: str, *_: t.Any) -> None:
        words = " ".join(statement.split())
        where = words.partition("WHERE")[2] or words
        spent[f"{words.split()[0]} ... {where[:60]}".replace("|", "/")].append(
            1000 * (time.perf_counter() - began.pop())
        )

    sa.event.listen(engine, "after_cursor_execute", record)
    return spent


def measure_beside(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """Steps per second beside very many finished runs, and in an empty table, in turn."""
    with contextlib.ExitStack() as stack:
        both: dict[str, Beside] = {}
        for name, finished in (("an empty table", 0), (f"{options.finished:,}", options.finished)):
            show(f"fill: {name}")
            place = stack.enter_context(place_for(options))
            both[name] = stack.enter_context(Beside(place, finished))
            both[name].measure(8, STEPS)
        count = options.total // STEPS
        for repeat in range(options.repeats):
            rates = []
            for name, ours in both.items():
                show(f"repeat {repeat + 1}: {name}")
                rates.append(count * STEPS / ours.measure(count, STEPS))
                yield Figure("beside", f"finished runs, {options.database}", name, rates[-1], RATE)
            ratio = rates[1] / rates[0]
            yield Figure("beside", options.database, "full over empty", ratio, "times")


def measure_purge(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """How fast finished runs are purged, and steps per second meanwhile."""
    with place_for(options, SEQUENCE_RETENTION=3600) as place:
        show("fill the table")
        with Beside(place, options.finished) as ours:
            ours.measure(8, STEPS)
            count, setting = options.total // STEPS, f"{options.finished:,} runs"
            until = time.monotonic() + options.seconds
            while time.monotonic() < until:
                before, began = ours.count(Status.FINISHED), time.perf_counter()
                rate = count * STEPS / ours.measure(count, STEPS)
                deleted = before + count - ours.count(Status.FINISHED)
                show(f"{before:,} left")
                yield Figure("purge", setting, "steps meanwhile", rate, RATE)
                seconds = time.perf_counter() - began
                yield Figure("purge", setting, "purged", deleted / seconds, "runs/s")


def measure_backlog(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """How fast runs that wait drain, few and many, and how many messages wait for that."""
    for count in (1000, options.backlog):
        with place_for(options) as place:
            ours = Beside(place)
            ours.prepare()
            show(f"start {count:,}")
            with ours.app.app_context():
                for first in range(0, count, BATCH):
                    many = ({"number": 0} for _ in range(min(BATCH, count - first)))
                    SEQUENCES[1, False].start_many(many)
                    db.session.commit()
            queue = Queue(runtime_of(ours.app).default_queue)
            publisher = publisher_of(runtime_of(ours.app))
            deepest = 0
            with ours:
                wait_until(lambda: place.ended >= count // 2, LONGEST_SECONDS, interval=0.01)  # noqa: B023
                began, before = time.perf_counter(), place.ended
                while place.ended < count:
                    deepest = max(deepest, publisher.depth([queue]))
                    show(f"{place.ended:,} of {count:,}")
                    time.sleep(0.05)
                rate = (count - before) / (time.perf_counter() - began)
        yield Figure("backlog", f"{count:,} runs of one step", "drained", rate, "runs/s")
        yield Figure("backlog", f"{count:,} runs of one step", "messages", deepest, "at most")


def measure_start(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """How fast start_many starts runs, 10,000 in a transaction, and the memory that it takes."""
    with place_for(options) as place:
        ours = Beside(place)
        ours.prepare()
        setting = f"{options.started:,} runs, {options.database}"
        with ours.app.app_context():
            for number in range(max(options.started // BATCH, 1)):
                show(f"{number * BATCH:,}")
                began = time.perf_counter()
                SEQUENCES[STEPS, False].start_many({"number": n} for n in range(BATCH))
                db.session.commit()
                rate = BATCH / (time.perf_counter() - began)
                yield Figure("start", setting, f"{BATCH:,} in a transaction", rate, "runs/s")
                if number in {0, options.started // BATCH - 1}:
                    which = "first batch" if number == 0 else "last batch"
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    yield Figure("start", setting, f"memory after the {which}", peak, "MiB")
