"""How soon a run goes on whose process, or whose whole worker, was killed."""

from __future__ import annotations

import math
import os
import random
import signal
import time
import typing as t

from flask_sequence import Status
from tests.crash.arena import Arena, Setting, open_arena
from tests.crash.report import Result, Show
from tests.crash.sequences import CrashHeld, CrashWrote

CHILD_SECONDS = 3.0
"""Within what time a child's runs go on, for 95 of 100."""
MORE_SECONDS = 2.0
"""Within what time a worker's runs go on, beside lease and sweep; all of them."""
CHILDREN = 4


def kill_children(setting: Setting, kills: int, show: Show, *, slack: float = 0.0) -> Result:
    """Kill children under a living worker, one after the other.

    :param slack: What a busy machine may add, in seconds.
    """
    result = Result("child killed", _label(setting), limit=CHILD_SECONDS)
    with open_arena(setting) as arena:
        worker = arena.start_worker(CHILDREN)
        for done in range(0, kills, CHILDREN):
            count = min(CHILDREN, kills - done)
            for run_id in _hold(arena, count):
                pid, _ = arena.attempts()[run_id, _step(arena)][0]
                os.kill(pid, signal.SIGKILL)
                _note(arena, result, {run_id: time.monotonic()})
            show(f"{result.check}, {result.setting}: {result.tried} of {kills}")
        if worker.exit_code is not None:
            result.problems.append(f"the worker ended with {worker.exit_code}")
    _judge(result, 0.95, slack)
    return result


def kill_workers(
    setting: Setting,
    kills: int,
    runs: int,
    show: Show,
    *,
    seed: int | None = None,
    slack: float = 0.0,
) -> Result:
    """Kill whole workers, beside another that takes over.

    :param kills: How many.
    :param runs: How many runs each of them holds.
    :param seed: For the moments of the kills between two renewals; None: at once.
    :param slack: What a busy machine may add, in seconds.
    """
    result = Result("worker killed", _label(setting))
    result.limit = setting.lease + setting.sweep + MORE_SECONDS
    moments = random.Random(seed)
    with open_arena(setting) as arena:
        worker = arena.start_worker(runs)
        for _ in range(kills):
            ids = _hold(arena, runs)
            other = arena.start_worker(runs)
            if seed is not None:
                time.sleep(moments.uniform(0.0, setting.lease / 3))
            killed_at = arena.kill(worker)
            _note(arena, result, dict.fromkeys(ids, killed_at))
            worker = other
            show(f"{result.check}, {result.setting}: {result.tried} of {kills * runs} runs")
    _judge(result, 1.0, slack)
    return result


def _label(setting: Setting) -> str:
    return f"{setting.database} {setting.pool} lease {setting.lease:g} sweep {setting.sweep:g}"


def _sequence(arena: Arena) -> type[t.Any]:
    # On SQLite who has written lets nobody else write; the threads of a process share a pool of
    # at most 15 connections, of which each that has written keeps one.
    setting = arena.setting
    shares = setting.database == "sqlite" or setting.pool == "threads"
    return CrashHeld if shares else CrashWrote


def _step(arena: Arena) -> str:
    return str(_sequence(arena).steps[0].__name__)


def _hold(arena: Arena, count: int) -> list[int]:
    ids = arena.commit(_sequence(arena), count)
    arena.wait_for_attempts(ids, _step(arena), 1)
    return ids


def _note(arena: Arena, result: Result, killed_at: dict[int, float]) -> None:
    """Note the seconds until the next attempt of each run, and what is not as promised."""
    step = _step(arena)
    arena.wait_for_attempts(killed_at, step, 2)
    for ended in arena.wait(killed_at):
        result.tried += 1
        made = arena.attempts()[ended.id, step]
        result.seconds.append(made[1][1] - killed_at[ended.id])
        effects = {name: n for (run, name), n in arena.effects().items() if run == ended.id}
        wanted = [(step, 1, "crashed"), (step, 2, "finished"), ("Two", 1, "finished")]
        seen = (ended.status, ended.history, set(effects.values()), len(made))
        if seen != (Status.FINISHED, wanted, {1}, 2):
            result.problems.append(f"run {ended.id}: {seen}")


def _judge(result: Result, part: float, slack: float) -> None:
    seconds = result.percentile(part)
    if (math.inf if seconds is None else seconds) > (result.limit or 0.0) + slack:
        result.problems.append(f"{seconds} s, of at most {result.limit} s")
