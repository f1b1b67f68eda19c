"""The crash-point matrix: a process is killed at each point of a run's way."""

from __future__ import annotations

import os
import signal
import time
import typing as t
from dataclasses import dataclass

from flask_sequence import Status
from tests.crash.arena import WAIT_SECONDS, Arena, Ended, Setting, open_arena
from tests.crash.points import EXIT
from tests.crash.report import Result, Show
from tests.crash.sequences import CrashApart, CrashBinds, CrashLooped, CrashPlain, CrashQuiet
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAYS = ("exit", "kill")
"""The process ends by itself, by ``os._exit``; or stands still and gets SIGKILL from outside."""
BYSTANDERS = 2
PREFORK_SLOTS = 3
SOLO_WORKERS = 3


@dataclass(frozen=True)
class Point:
    """A point, and what is documented of a run whose process is killed there."""

    name: str
    sequence: type[t.Any]
    step: str
    lines: int = 1
    """How often the body of that step is begun."""
    crashes: bool = True
    """Whether that step has a crash in its history."""


POINTS = (
    Point("before the claim", CrashPlain, "One", crashes=False),
    Point("after the claim", CrashPlain, "One"),
    Point("before the body", CrashPlain, "Two"),
    Point("after the body", CrashPlain, "Two", lines=2),
    Point("before the commit", CrashPlain, "Two", lines=2),
    Point("after the commit", CrashPlain, "Two", crashes=False),
    Point("before the commit", CrashQuiet, "Quiet", lines=2),
    Point("after the commit", CrashQuiet, "Quiet", crashes=False),
    Point("after the publish", CrashApart, "Two", crashes=False),
    Point("between binds", CrashBinds, "TwoBinds", lines=2),
    Point("after the commit", CrashBinds, "TwoBinds", lines=2),
    Point("before a checkpoint", CrashLooped, "Looped", lines=2),
    Point("after a checkpoint", CrashLooped, "Looped", lines=2),
)


@dataclass
class Case:
    """A run that is killed at a point."""

    point: Point
    way: str
    run_id: int = 0
    killed_at: float | None = None
    holds: bool = False
    """Whether the process held the run at its next step when it was killed."""

    @property
    def label(self) -> str:
        """Name it in a report."""
        return f"{self.way} {self.point.name}, {self.point.sequence.__name__}.{self.point.step}"

    def problems(self, arena: Arena, ended: Ended) -> t.Iterator[str]:
        """Say what is not as promised."""
        steps = [step.__name__ for step in self.point.sequence.steps]
        if self.killed_at is None:
            yield "the point was not reached"
        if (ended.status, ended.error) != (Status.FINISHED, None):
            yield f"status {ended.status}, error {ended.error}"
        yield from wrong_traces(arena, ended, steps)
        attempts = arena.attempts()
        taken = self._taken(arena, ended, steps)
        for step in steps:
            made = len(attempts.get((self.run_id, step), ()))
            wanted = self.point.lines if step == self.point.step else 1
            if made not in {wanted, 2 if step == taken else wanted}:
                yield f"{made} attempts at {step}, not {wanted}"
        if ended.history != self._history(steps, taken):
            yield f"history {ended.history}, {ended.errors}"

    def _taken(self, arena: Arena, ended: Ended, steps: list[str]) -> str | None:
        """Give the step that another thread of the process had taken before it was killed."""
        if self.point.name != "after the publish" or arena.setting.pool == "prefork":
            return None
        following = steps[steps.index(self.point.step) + 1]
        return following if (following, 1, "crashed") in ended.history else None

    def _history(self, steps: list[str], taken: str | None) -> list[tuple[str, int, str]]:
        crashed = self.point.step if self.point.crashes else taken
        if self.holds and crashed is None:
            crashed = steps[steps.index(self.point.step) + 1]
        history = []
        for step in steps:
            history += [(step, 1, "crashed")] if step == crashed else []
            history.append((step, 2 if step == crashed else 1, "finished"))
        return history


def wrong_traces(arena: Arena, ended: Ended, steps: list[str]) -> t.Iterator[str]:
    """Say which effects of a run and which of its data are not as if nothing had happened."""
    cursor = {"cursor": 3} if "Looped" in steps else {}
    data = {key: value for key, value in ended.data.items() if key != "number"}
    if data != {"trail": steps, **cursor}:
        yield f"data {data}"
    wanted = [
        *(step for step in steps if step != "Quiet"),
        *(f"Looped {n}" for n in range(3) if cursor),
    ]
    effects = {step: n for (run, step), n in arena.effects().items() if run == ended.id}
    for step in {*wanted, *effects} - {"TwoBinds", "marks"}:
        if effects.get(step, 0) != (step in wanted):
            yield f"{effects.get(step, 0)} effects of {step}"
    for step in ("TwoBinds", "marks") if "TwoBinds" in steps else ():
        if effects.get(step, 0) not in {1, 2}:
            yield f"{effects.get(step, 0)} effects of {step}"


def rounds(setting: Setting, cases: list[Case]) -> list[list[Case]]:
    """Put together what can be killed in one life of the workers."""
    if setting.pool == "prefork":
        size = len(cases)  # each child dies alone
    elif setting.database == "sqlite":
        size = 1  # who stands before a commit lets nobody else write
    elif setting.pool == "solo":
        size = SOLO_WORKERS
    else:
        exits, kills = ([case for case in cases if case.way == way] for way in WAYS)
        return [[case] for case in exits] + ([kills] if kills else [])
    return [cases[n : n + size] for n in range(0, len(cases), size)]


def run_cell(setting: Setting, cases: list[Case], show: Show) -> Result:
    """Kill at some points, at one setting."""
    result = Result("matrix", setting.label)
    with open_arena(setting) as arena:
        for group in rounds(setting, cases):
            _revive(arena)
            _kill_round(arena, group, result)
            show(f"{setting.label}: {result.tried} killed, {len(result.problems)} problems")
        if result.problems:
            result.problems.append(arena.logs())
    return result


def _revive(arena: Arena) -> None:
    pool, sqlite = arena.setting.pool, arena.setting.database == "sqlite"
    wanted = SOLO_WORKERS if pool == "solo" and not sqlite else 1
    slots = {"prefork": PREFORK_SLOTS, "threads": len(POINTS) + 1, "solo": 1}[pool]
    arena.workers = [worker for worker in arena.workers if worker.exit_code is None]
    while len(arena.workers) < wanted:
        arena.start_worker(slots, ready=False)
    arena.wait_for_workers()


def _kill_round(arena: Arena, cases: list[Case], result: Result) -> None:
    for case in cases:
        arm = f"{case.point.name}|{case.point.step}|{case.way}"
        (case.run_id,) = arena.commit(case.point.sequence, arm=arm)
    bystanders = arena.commit(CrashPlain, BYSTANDERS)
    try:
        wait_until(lambda: _kill_reached(arena, cases), WAIT_SECONDS)
    except AssertionError:
        result.problems.append(
            f"{arena.setting.label}: not all points were reached\n{arena.logs()}"
        )
    if arena.setting.pool != "prefork":
        _end_workers(arena, cases)
        _revive(arena)
    for ended, case in zip(arena.wait([c.run_id for c in cases]), cases, strict=True):
        result.tried += 1
        for problem in case.problems(arena, ended):
            result.problems.append(f"{case.label}, run {case.run_id}: {problem}")
    for ended in arena.wait(bystanders):
        for problem in wrong_traces(arena, ended, ["One", "Two", "Three"]):
            result.problems.append(f"bystander {ended.id}: {problem}")


def _kill_reached(arena: Arena, cases: list[Case]) -> bool:
    """Kill who has come to the point by now, and tell whether all have."""
    reached = {int(line[0]): line for line in arena.noted("reached")}
    for case in cases:
        if case.run_id not in reached or case.killed_at is not None:
            continue
        _, pid, holds, at = reached[case.run_id]
        case.holds, case.killed_at = holds == "1", float(at)
        if case.way == "kill" and arena.setting.pool == "prefork":
            os.kill(int(pid), signal.SIGKILL)
            case.killed_at = time.monotonic()
    return all(case.killed_at is not None for case in cases)


def _end_workers(arena: Arena, cases: list[Case]) -> None:
    """Kill the workers from outside, or see them end by themselves."""
    if {case.way for case in cases} == {"exit"}:
        died = min(len(cases), len(arena.workers))
        wait_until(lambda: sum(w.exit_code == EXIT for w in arena.workers) == died)
        return
    for worker in list(arena.workers):
        _kill(arena, worker, cases)


def _kill(arena: Arena, worker: Worker, cases: list[Case]) -> None:
    at = arena.kill(worker)
    for case in cases:
        if case.way == "kill":
            case.killed_at = at
