"""Measure beside very many rows: the sweep, steps, the purge, a backlog, and start_many."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import sys
import time
import typing as t
from pathlib import Path
from types import SimpleNamespace

import sqlalchemy as sa
from kombu import Queue
from sqlalchemy.pool import NullPool

from benchmarks.contender import SERVERS, Place, new_place
from benchmarks.ours import SEQUENCES, FlaskSequence, db
from benchmarks.ours import create_app as create_bench_app
from flask_sequence import Status, upkeep
from flask_sequence.keeper import Keeper
from flask_sequence.models import runs
from flask_sequence.publisher import publisher_of
from flask_sequence.runtime import runtime_of
from tests.filling import analyze, fill

if t.TYPE_CHECKING:
    from flask import Flask

ACTIVE = 1000
BATCH = 10_000
"""How many runs one transaction starts."""
STEPS = 10
LATE = "'2200-01-01'"
RETENTION = "retention"
"""The file in a place's folder that holds SEQUENCE_RETENTION, in seconds."""


def create_app(place: Place | None = None) -> Flask:
    """Make the application of the other benchmarks, with a retention that may be short."""
    place = place or Place.of_worker()
    app = create_bench_app(place)
    file = Path(place.folder) / RETENTION
    if file.exists():
        runtime = runtime_of(app)
        seconds = float(file.read_text())
        runtime.settings = dataclasses.replace(runtime.settings, retention_seconds=seconds)
    return app


class Ours(FlaskSequence):
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
        self.app = create_app(self.place)
        self.engine = sa.create_engine(self.place.database, poolclass=NullPool)
        if self.finished:
            fill(self.engine, self.finished, Status.FINISHED, history=1)
            fill(self.engine, self.active, Status.WAITING, due_at=LATE)
            analyze(self.engine)

    def commands(self) -> list[list[str]]:
        return [[part.replace("ours:", "scale:") for part in line] for line in super().commands()]

    def is_done(self, count: int) -> bool:
        return self.count(Status.WAITING, Status.RUNNING) == self.active

    def count(self, *status: Status) -> int:
        """Count the runs of some statuses."""
        counted = sa.select(sa.func.count()).where(runs.c.status.in_(status))
        with self.engine.connect() as connection:
            return connection.scalar(counted.select_from(runs)) or 0


def place_for(options: argparse.Namespace) -> contextlib.AbstractContextManager[Place]:
    """Give an empty place, with Redis."""
    return new_place(options.database, "redis", processes=options.processes, rows=False)


def keeper_of(app: Flask) -> Keeper:
    """Make a keeper that no thread runs, of a worker with two slots."""
    runtime = runtime_of(app)
    runtime.worker_id = "w0"
    queues = [Queue(runtime.default_queue)]
    consumer: t.Any = SimpleNamespace(
        pool=SimpleNamespace(_pool=None),
        controller=SimpleNamespace(concurrency=2),
        task_consumer=SimpleNamespace(queues=queues),
    )
    return Keeper(runtime, consumer)


def measure_sweep(options: argparse.Namespace) -> dict[str, t.Any]:
    """Time a sweep that finds many due runs, and its statements."""
    with place_for(options) as place:
        ours = Ours(place, options.finished)
        ours.prepare()
        app, queue = ours.app, runtime_of(ours.app).default_queue
        fill(ours.engine, ACTIVE, Status.WAITING, step="s1", queue=f"'{queue}'")
        pid = str(os.getpid())
        fill(ours.engine, ACTIVE, Status.RUNNING, worker_id="concat('w', i % 100)", pid=pid)
        with ours.engine.begin() as connection:
            named = sa.update(runs).where(runs.c.status.in_((Status.WAITING, Status.RUNNING)))
            connection.execute(named.values(sequence=SEQUENCES[STEPS, False].name))
            for number in range(100):
                upkeep.renew_worker(connection, f"w{number}", host="h", pid=1, lease=3600)
        analyze(ours.engine)
        keeper = keeper_of(app)
        spent = _statement_times(keeper._engine)
        seconds, publishing = [], []
        publish = keeper._publish

        def timed(nudges: t.Any) -> None:
            began = time.perf_counter()
            publish(nudges)
            publishing[-1] += time.perf_counter() - began

        keeper._publish = timed  # type: ignore[method-assign]
        for _ in range(options.repeats * 4):
            with ours.engine.begin() as connection:
                connection.execute(
                    sa.update(runs).where(runs.c.step == "s1").values(published_at=None)
                )
            publisher_of(runtime_of(app)).celery.control.purge()
            publishing.append(0.0)
            began = time.perf_counter()
            with keeper._connected():
                keeper._sweep()
            seconds.append(time.perf_counter() - began - publishing[-1])
        return {
            "a sweep, ms": _spread([1000 * value for value in seconds]),
            "its statements together, ms": round(
                sum(sum(times) for times in spent.values()) / len(seconds), 1
            ),
            "and publishing 200 nudges, ms": _spread([1000 * value for value in publishing]),
            "its statements, ms": {
                statement: round(statistics.median(times), 2) for statement, times in spent.items()
            },
        }


def _statement_times(engine: sa.Engine) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = collections.defaultdict(list)
    began: list[float] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *_: began.append(time.perf_counter()))

    def record(conn: t.Any, cursor: t.Any, statement: str, *_: t.Any) -> None:
        words = " ".join(statement.split())
        where = words.partition("WHERE")[2] or words
        spent[f"{words.split()[0]} ... {where[:100]}"].append(
            1000 * (time.perf_counter() - began.pop())
        )

    sa.event.listen(engine, "after_cursor_execute", record)
    return spent


def measure_steps(options: argparse.Namespace) -> dict[str, t.Any]:
    """Measure steps beside many rows and in an empty table, in turn."""
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(Ours(stack.enter_context(place_for(options)), finished))
            for finished in (0, options.finished)
        ]
        for ours in both:
            ours.measure(8, STEPS)
        rates: list[list[float]] = [[], []]
        count = options.total // STEPS
        for _ in range(options.repeats):
            for ours, found in zip(both, rates, strict=True):
                found.append(count * STEPS / ours.measure(count, STEPS))
    ratios = [full / empty for empty, full in zip(*rates, strict=True)]
    return {
        "steps/s, empty": _spread(rates[0]),
        "steps/s, full": _spread(rates[1]),
        "full over empty": _spread(ratios),
    }


def measure_purge(options: argparse.Namespace) -> dict[str, t.Any]:
    """Measure how fast finished runs are purged, and steps meanwhile."""
    with place_for(options) as place:
        (Path(place.folder) / RETENTION).write_text("3600")
        rates, began = [], time.perf_counter()
        with Ours(place, options.finished) as ours:
            ours.measure(8, STEPS)
            before, began = ours.count(Status.FINISHED), time.perf_counter()
            count, done = options.total // STEPS, 0
            while time.perf_counter() - began < options.seconds:
                rates.append(count * STEPS / ours.measure(count, STEPS))
                done += count
            deleted = before + done - ours.count(Status.FINISHED)
            seconds = time.perf_counter() - began
        return {"purged runs/s": round(deleted / seconds), "steps/s meanwhile": _spread(rates)}


def measure_backlog(options: argparse.Namespace) -> dict[str, t.Any]:
    """Measure how fast runs that wait drain, and how many messages wait for that."""
    found: dict[str, t.Any] = {}
    for count in (1000, options.backlog):
        with place_for(options) as place:
            ours = Ours(place)
            ours.prepare()
            with ours.app.app_context():
                for first in range(0, count, BATCH):
                    many = ({"number": 0} for _ in range(min(BATCH, count - first)))
                    SEQUENCES[1, False].start_many(many)
                    db.session.commit()
            queue = Queue(runtime_of(ours.app).default_queue)
            publisher = publisher_of(runtime_of(ours.app))
            deepest = 0
            with ours:
                while place.ended < count // 10:
                    time.sleep(0.01)
                began, before = time.perf_counter(), place.ended
                while place.ended < count:
                    deepest = max(deepest, publisher.depth([queue]))
                    time.sleep(0.05)
                rate = (count - before) / (time.perf_counter() - began)
        found[f"{count:,} runs"] = {"runs/s": round(rate), "messages at most": deepest}
    return found


def measure_start(options: argparse.Namespace) -> dict[str, t.Any]:
    """Measure start_many, and the memory that it takes."""
    with place_for(options) as place:
        ours = Ours(place)
        ours.prepare()
        rates, memory = [], []
        with ours.app.app_context():
            for _ in range(max(options.started // BATCH, 1)):
                began = time.perf_counter()
                SEQUENCES[STEPS, False].start_many({"number": n} for n in range(BATCH))
                db.session.commit()
                rates.append(BATCH / (time.perf_counter() - began))
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {
        f"runs/s, {BATCH:,} in a transaction": _spread(rates),
        "most memory, MiB": {"first batch": round(memory[0]), "last batch": round(memory[-1])},
    }


def _spread(values: t.Sequence[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 2 if high < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


PARTS: dict[str, t.Callable[[argparse.Namespace], dict[str, t.Any]]] = {
    "sweep": measure_sweep,
    "steps": measure_steps,
    "purge": measure_purge,
    "backlog": measure_backlog,
    "start": measure_start,
}


def main(arguments: t.Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--database", choices=tuple(SERVERS), default="postgresql")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--finished", type=int, default=1_000_000, help="rows that are there")
    parser.add_argument("--backlog", type=int, default=100_000, help="runs that wait")
    parser.add_argument("--started", type=int, default=1_000_000, help="runs for start_many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--total", type=int, default=3000, help="steps of one measurement")
    parser.add_argument("--seconds", type=float, default=60, help="how long to purge")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a folder for the figures, as JSON")
    options = parser.parse_args(arguments)
    found: dict[str, t.Any] = {}
    for part in options.parts:
        print(part, file=sys.stderr, flush=True)
        found[part] = PARTS[part](options)
        print(json.dumps({part: found[part]}, indent=1), flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1)
        (options.output / f"scale-{options.database}.json").write_text(text)


if __name__ == "__main__":
    main()
