"""The full counts: ``bin/crash``, with a report as text and as JSON."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import sys
import time
import typing as t
from pathlib import Path

from tests.crash import recovery, zombies
from tests.crash.arena import POOLS, Setting
from tests.crash.matrix import POINTS, WAYS, Case, run_cell
from tests.crash.report import Progress, Result, Show, as_text, write

DATABASES = ("sqlite", "postgresql", "mariadb")
CHECKS = ("matrix", "children", "workers", "zombies")
Job = t.Callable[[Show], Result]


def parse(arguments: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="bin/crash", description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--database", nargs="+", default=DATABASES, choices=DATABASES)
    parser.add_argument("--pool", nargs="+", default=tuple(POOLS), choices=tuple(POOLS))
    parser.add_argument("--burst", nargs="+", type=float, default=(0.0, 1.0), help="seconds")
    parser.add_argument("--kills", type=int, default=100, help="children, and runs of workers")
    parser.add_argument("--defaults", type=int, default=3, help="workers killed at lease 30")
    parser.add_argument("--zombies", type=int, default=100, help="of each sort")
    parser.add_argument("--jobs", type=int, default=2, help="cells of the matrix at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path("build/crash"), help="a folder")
    options = parser.parse_args(arguments)
    if not set(options.checks) <= set(CHECKS):
        parser.error(f"the checks are {', '.join(CHECKS)}")
    options.checks = options.checks or CHECKS
    return options


def matrix_jobs(options: argparse.Namespace) -> t.Iterator[Job]:
    """Give the cells of the matrix: each point, in both ways."""
    for burst in options.burst:
        for database in options.database:
            for pool in options.pool:
                setting = Setting(database=database, pool=pool, burst=burst)
                cases = [Case(point, way) for way in WAYS for point in POINTS]
                yield functools.partial(run_cell, setting, cases)


def timed_jobs(options: argparse.Namespace) -> t.Iterator[Job]:
    """Give what is measured, or stopped: one at a time."""
    kills = options.kills
    for database in options.database:
        short, long = Setting(database=database), Setting(database=database, lease=30.0, sweep=5.0)
        # Thirty children that begin at once would keep this machine busy for seconds.
        many = dataclasses.replace(long, pool="threads")
        if "children" in options.checks:
            yield functools.partial(recovery.kill_children, long, kills)
        if "workers" in options.checks:
            for setting, count, runs in ((short, kills // 10, 10), (many, options.defaults, 30)):
                if count:
                    work = functools.partial(recovery.kill_workers, setting, count, runs)
                    yield functools.partial(work, seed=options.seed)
        if "zombies" in options.checks:
            for sort in zombies.SORTS:
                count = options.zombies // 10
                yield functools.partial(zombies.stop_workers, short, sort, count, 10)


def main(options: argparse.Namespace) -> int:
    """Do it all, and tell by the exit code whether all was as promised."""
    cells = list(matrix_jobs(options)) if "matrix" in options.checks else []
    timed = list(timed_jobs(options))
    progress = Progress(len(cells) + len(timed))
    results: list[Result] = []

    def work(job: Job) -> None:
        began = time.monotonic()
        try:
            result = job(progress)
        except Exception as error:
            result = Result("harness", repr(job), problems=[f"{type(error).__name__}: {error}"])
        result.took = time.monotonic() - began
        results.append(result)
        progress.done(result)
        write(options.output, results)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, cells))
    for job in timed:
        work(job)
    print(as_text(results), end="")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(parse()))
