"""What a worker costs: idle, after hours of work, and with much data in its runs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import time
import typing as t
from pathlib import Path

from benchmarks.chain import Chain
from benchmarks.contender import Contender, Show, new_place
from benchmarks.ours import KEPT, Changing, FlaskSequence, Keeping
from benchmarks.plots import OURS, curves_of
from benchmarks.report import Figure
from tests.support.waiting import meanwhile, wait_until
from tests.support.workers import family_of

SETTLE_SECONDS = 10.0
"""How long a worker is left alone before it counts as idle."""
SAMPLE_SECONDS = 5.0
MIB = 1024 * 1024
LARGE = "x" * MIB


def measure_idle(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """The share of one core that an idle worker takes, with all its processes."""
    for broker in options.brokers:
        for kind in (FlaskSequence, Chain)[: 1 if broker == "embedded" else 2]:
            name = OURS if kind is FlaskSequence else "a Celery worker"
            made = new_place(options.database, broker, processes=options.processes)
            with made as place, kind(place) as contender:
                contender.measure(4, 1)
                show(f"{name}, {broker}")
                time.sleep(min(SETTLE_SECONDS, options.seconds))
                for _ in range(options.repeats):
                    before, began = cpu_seconds(contender), time.monotonic()
                    time.sleep(options.seconds / options.repeats)
                    share = (cpu_seconds(contender) - before) / (time.monotonic() - began)
                    yield Figure("idle", broker, name, 100 * share, "% of a core")


def cpu_seconds(contender: Contender) -> float:
    """Give the seconds of work that all processes of a contender have done."""
    ticks = 0
    for pid in _family(contender):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(contender: Contender) -> list[int]:
    return [pid for process in contender._processes for pid in family_of(process.pid)]


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def measure_memory(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """How much each process of a worker grows under a steady load, once it is warm."""
    steps = 10
    made = new_place(options.database, options.broker, processes=options.processes)
    with made as place, FlaskSequence(place) as contender, contextlib.ExitStack() as stack:
        load = functools.partial(contender.begin, round(options.load), steps)
        stack.enter_context(meanwhile(load, interval=1.0))
        wait_until(lambda: place.ended >= options.warm_up * options.load, 600)
        pids = _family(contender)
        names = ["main process", *(f"child {number}" for number in range(1, len(pids)))]
        curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        began, before = time.monotonic(), place.ended
        while (elapsed := time.monotonic() - began) < options.seconds:
            for name, pid in zip(names, pids, strict=True):
                curves[name].append((elapsed, _resident_mib(pid)))
            show(f"{elapsed:.0f} of {options.seconds:.0f} s, {place.ended - before} runs")
            time.sleep(min(SAMPLE_SECONDS, options.seconds / 10))
        done = (place.ended - before) * steps
    setting = f"{options.seconds:.0f} s, {done:,} steps"
    for name, curve in curves.items():
        yield Figure("memory", setting, name, curve[-1][1] - curve[0][1], "MiB of growth")
        slope = statistics.linear_regression(*zip(*curve, strict=True)).slope
        yield Figure("memory", setting, name, 3600 * slope, "MiB in an hour")
        yield Figure("memory", setting, name, curve[-1][1], "MiB at the end")
    title = f"Resident memory, MiB, over {setting}"
    (options.output / "memory.svg").write_text(curves_of(curves, title))


def measure_data(options: argparse.Namespace, show: Show) -> t.Iterator[Figure]:
    """What 1 MiB of data costs a run whose steps leave it, or change something in it."""
    count = 20
    made = new_place(options.database, options.broker, processes=options.processes)
    with made as place, FlaskSequence(place) as ours:
        ours.measure(4, 1)
        for repeat in range(options.repeats):
            show(f"repeat {repeat + 1}")
            for kind, what in ((Keeping, "leave the data"), (Changing, "change the data")):
                for text, size in (("", "a few bytes"), (LARGE, "1 MiB")):
                    before, began = place.ended, time.perf_counter()
                    ours.start(kind, count, number=0, text=text)
                    wait_until(lambda b=before: place.ended >= b + count, 120, interval=0.005)  # type: ignore[misc]
                    taken = 1000 * (time.perf_counter() - began) / count
                    yield Figure("data", f"{KEPT} steps that {what}", size, taken, "ms a run")
