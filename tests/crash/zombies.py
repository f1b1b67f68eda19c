"""A worker that is stopped in mid-step, overtaken, and continued: it cannot commit."""

from __future__ import annotations

import signal
import typing as t

from flask_sequence import Status
from tests.crash.arena import WAIT_SECONDS, Arena, Setting, open_arena
from tests.crash.report import Result, Show
from tests.crash.sequences import (
    CrashCareless,
    CrashCarelessEarly,
    CrashHeld,
    CrashPlain,
    CrashWrote,
)
from tests.support.waiting import wait_until
from tests.support.workers import Worker

REFUSED = "no longer held by this process"
SORTS = {
    "step": (CrashHeld, CrashWrote),
    "checkpoint": (CrashCareless, CrashCarelessEarly),
}
"""What is stopped: before its writes, and after some that are not committed."""


def stop_workers(setting: Setting, sort: str, stops: int, runs: int, show: Show) -> Result:
    """Stop a worker past its lease, with runs that another one finishes; then continue it.

    :param sort: ``step``, or ``checkpoint`` for one that swallows errors.
    :param stops: How often.
    :param runs: How many runs it holds each time.
    """
    label = f"{setting.database} {setting.pool} lease {setting.lease:g}"
    result = Result(f"zombie {sort}", label)
    # On SQLite who has written lets nobody else write.
    sequences = SORTS[sort][:1] if setting.database == "sqlite" else SORTS[sort]
    with open_arena(setting) as arena:
        for _ in range(stops):
            _stop_once(arena, [sequences[n % len(sequences)] for n in range(runs)], result)
            show(f"{result.check}, {label}: {result.tried} of {stops * runs}")
    return result


def _stop_once(arena: Arena, sequences: list[type[t.Any]], result: Result) -> None:
    gate = arena.scene.folder / "open"
    gate.unlink(missing_ok=True)
    zombie = arena.start_worker(len(sequences))
    held = {arena.commit(sequence)[0]: sequence.steps[0].__name__ for sequence in sequences}
    _wait_for_attempts(arena, held, 1)
    arena.signal(zombie, signal.SIGSTOP)
    other = arena.start_worker(len(sequences))
    _wait_for_attempts(arena, held, 2)
    statuses = [ended.status for ended in arena.wait(held)]
    before = arena.effects()
    gate.touch()
    arena.signal(zombie, signal.SIGCONT)
    try:
        refused = wait_until(lambda: _refused(zombie, len(held)), WAIT_SECONDS)
    except AssertionError:
        refused = zombie.log.count(REFUSED)
    result.tried += len(held)
    _check(arena, held, statuses, refused, before == arena.effects(), result)
    arena.kill(other)
    _check_serving(arena, zombie, held, result)
    arena.kill(zombie)


def _wait_for_attempts(arena: Arena, held: dict[int, str], count: int) -> None:
    for step in set(held.values()):
        arena.wait_for_attempts([n for n, its in held.items() if its == step], step, count)


def _refused(zombie: Worker, wanted: int) -> int:
    count = zombie.log.count(REFUSED)
    return count if count >= wanted else 0


def _check(
    arena: Arena,
    held: dict[int, str],
    statuses: list[Status],
    refused: int,
    same: bool,
    result: Result,
) -> None:
    if set(statuses) != {Status.FINISHED}:
        result.problems.append(f"statuses {statuses}")
    if refused != len(held):
        result.problems.append(f"{refused} commits were refused, of {len(held)}\n{arena.logs()}")
    if not same:
        result.problems.append("the effects are others than before")
    for (run_id, step), count in arena.effects().items():
        if run_id in held and count != 1:
            result.problems.append(f"run {run_id}: {count} effects of {step}")
    passed = [line for line in arena.noted("passed") if int(line[0]) in held and line[1] == "1"]
    if passed:
        result.problems.append(f"went on after the checkpoint: {passed}")


def _check_serving(arena: Arena, zombie: Worker, held: dict[int, str], result: Result) -> None:
    """See the same processes finish other runs."""
    pids = {arena.attempts()[run_id, step][0][0] for run_id, step in held.items()}
    ids = arena.commit(CrashPlain, len(held))
    statuses = {ended.status for ended in arena.wait(ids)}
    served = {pid for run_id in ids for pid, _ in arena.attempts().get((run_id, "One"), ())}
    if statuses != {Status.FINISHED} or not served or not served <= pids:
        result.problems.append(
            f"afterwards {statuses}, served by {served} of {pids}, exit code {zombie.exit_code}"
        )
