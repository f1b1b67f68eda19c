"""What a start adds to a request, how soon a step begins, and what its app context costs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import statistics
import time
import typing as t

import sqlalchemy as sa

from benchmarks.chain import Chain
from benchmarks.contender import Contender, Show, bench_rows, new_place
from benchmarks.ours import Beginning, FlaskSequence, db
from benchmarks.plots import OURS
from benchmarks.report import Figure
from tests.support.waiting import wait_until

if t.TYPE_CHECKING:
    from flask import Flask

DELAY = "task.delay()"
CONTEXTS = 5000
IDLE_SECONDS = (0.2, 0.7)
"""For how long nothing is sent before each sample: the worker is idle, at any point of a poll."""


def measure_latency(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """From the commit, which includes publishing, to the start of the first step: p50 and p95."""
    for broker in options.brokers:
        with contextlib.ExitStack() as stack:
            pairs: list[tuple[str, Contender, t.Callable[[], None]]] = []
            for kind in (FlaskSequence, Chain)[: 1 if broker == "embedded" else 2]:
                place = stack.enter_context(new_place(options.database, broker, processes=2))
                contender = stack.enter_context(kind(place))
                pairs.append(_sender_of(contender))
            for _, contender, send in pairs:
                _sample(contender, send)
            for repeat in range(options.repeats):
                show(f"{broker}, repeat {repeat + 1}")
                taken: dict[str, list[float]] = {name: [] for name, *_ in pairs}
                for _ in range(options.samples):
                    for name, contender, send in pairs:
                        time.sleep(random.uniform(*IDLE_SECONDS))
                        taken[name].append(_sample(contender, send))
                for name, samples in taken.items():
                    quantiles = statistics.quantiles(samples, n=20)
                    for what, value in (("p50", quantiles[9]), ("p95", quantiles[18])):
                        yield Figure("latency", f"{what}, {broker}", name, 1000 * value, "ms")


def _sender_of(contender: Contender) -> tuple[str, Contender, t.Callable[[], None]]:
    if isinstance(contender, FlaskSequence):
        return OURS, contender, functools.partial(contender.start, Beginning, 1)
    assert isinstance(contender, Chain)
    return DELAY, contender, contender.celery.tasks["note_begin"].delay


def _sample(contender: Contender, send: t.Callable[[], t.Any]) -> float:
    before = len(contender.place.begun)
    sent = time.monotonic()
    send()
    begun = wait_until(lambda: contender.place.begun[before:], 30, interval=0.002)
    return begun[0] - sent


def measure_request(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """What a start, and a task's delay(), add to a request that inserts a row and commits."""
    made = new_place(options.database, options.broker, processes=2)
    other = new_place(options.database, options.broker, processes=2)
    with made as place, other as its_place:
        ours, chain = FlaskSequence(place), Chain(its_place)
        ours.prepare()
        chain.prepare()
        _add_routes(ours.app, chain.celery.tasks["note_begin"].delay)
        client = ours.app.test_client()
        for repeat in range(options.repeats):
            show(f"repeat {repeat + 1}")
            taken: dict[str, list[float]] = {"plain": [], OURS: [], DELAY: []}
            for number in range(options.samples * 5 + 10):
                for name, samples in taken.items():
                    began = time.perf_counter()
                    assert client.post(f"/{name}").status_code == 200
                    if number >= 10:  # by then all connections are there
                        samples.append(1000 * (time.perf_counter() - began))
            plain = statistics.median(taken.pop("plain"))
            yield Figure("request", "that commits a row", "nothing else in it", plain, "ms")
            for name, samples in taken.items():
                added = statistics.median(samples) - plain
                yield Figure("request", "longer by", name, added, "ms")


def measure_context(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """What the app context of an attempt costs: pushed, torn down, and with a session in it."""
    with new_place(options.database, options.broker, processes=2) as place:
        ours = FlaskSequence(place)
        ours.prepare()

        def empty() -> None:
            with ours.app.app_context():
                pass

        def committed() -> None:
            with ours.app.app_context():
                db.session.commit()

        for repeat in range(options.repeats):
            show(f"repeat {repeat + 1}")
            for name, act in {"empty": empty, "with a commit of nothing": committed}.items():
                began = time.perf_counter()
                for _ in range(CONTEXTS):
                    act()
                each = 1_000_000 * (time.perf_counter() - began) / CONTEXTS
                yield Figure("context", "one app context", name, each, "µs")


def _add_routes(app: Flask, delay: t.Callable[[], object]) -> None:
    def write() -> None:
        db.session.execute(sa.insert(bench_rows).values(number=1))

    @app.post("/plain")
    def plain() -> str:
        write()
        db.session.commit()
        return ""

    @app.post(f"/{OURS}")
    def start() -> str:
        write()
        Beginning.start(number=0)
        db.session.commit()
        return ""

    @app.post(f"/{DELAY}")
    def send() -> str:
        write()
        db.session.commit()
        delay()
        return ""
