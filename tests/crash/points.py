"""The points at which a process is killed; the functions of the package are wrapped to reach them.

A worker's module calls ``install()``; a run for which the harness has laid a file ``arm-<id>`` is
killed, or held until it is killed, when it comes to the point that the file names.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import typing as t

from flask_sequence import Status, Step
from flask_sequence.engine import runner
from flask_sequence.engine.attempt import Attempt
from flask_sequence.engine.body import Body
from flask_sequence.engine.doors import Doors
from flask_sequence.engine.fence import Fence, Way
from flask_sequence.rows.moves import CHECKPOINT
from flask_sequence.worker import task
from tests.crash.sequences import HELD_SECONDS, note
from tests.support.working import folder

EXIT = 9
"""The exit code of a process that ends at a point by itself."""

CallT = t.Callable[..., t.Any]


class _Here(threading.local):
    """What this thread is at."""

    run_id: int = 0
    step: str = ""
    commits: int = 0
    """How many connections were let through to this commit of the session."""
    checkpoint: bool = False


_here = _Here()


def reach(point: str, run_id: int, step: str | None, *, holds: bool = False) -> None:
    """Come to a point: go on, end, or stand still.

    :param point: Its name.
    :param run_id: The run.
    :param step: The step that it stands at; None: it is not known here.
    :param holds: Whether the process holds the run at its next step.
    """
    arm = folder() / f"arm-{run_id}"
    try:
        named, at, way = arm.read_text().split("|")
        if named != point or step not in (None, at):
            return
        arm.rename(folder() / f"reached-{run_id}")  # only one process gets it
    except FileNotFoundError:
        return
    note("reached", run_id, os.getpid(), int(holds), time.monotonic())
    if way == "kill":
        time.sleep(HELD_SECONDS)
    os._exit(EXIT)


def install() -> None:
    """Wrap what a run comes by on its way."""
    _wrap(runner, "claim_run", _claim_run)
    _wrap(Body, "run", _run_body)
    _wrap(Step, "_check_end", _check_end)
    _wrap(Fence, "let_through", _let_through)
    _wrap(Fence, "move_alone", _move_alone)
    _wrap(Doors, "to_commit_elsewhere", _to_commit_elsewhere)
    _wrap(Doors, "answered", _answered)
    _wrap(task, "publish", _publish)


def _wrap(owner: t.Any, name: str, wrapper: CallT) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, call)


def _claim_run(claim: CallT, runtime: t.Any, run_id: int, *args: t.Any, **kw: t.Any) -> t.Any:
    reach("before the claim", run_id, None)
    attempt = claim(runtime, run_id, *args, **kw)
    if isinstance(attempt, Attempt):
        reach("after the claim", run_id, attempt.step.name)
    return attempt


def _run_body(run: CallT, body: t.Any) -> t.Any:
    claim = body.attempt.claim
    _here.run_id, _here.step, _here.commits = claim.id, claim.step, 0
    reach("before the body", claim.id, claim.step)
    return run(body)


def _check_end(check: CallT, *args: t.Any) -> t.Any:
    reach("after the body", _here.run_id, _here.step)
    return check(*args)


def _let_through(let: CallT, fence: Fence, connection: t.Any, way: Way) -> None:
    _here.checkpoint = fence.move is CHECKPOINT
    if way is Way.ALONG:  # there is no moment between the move and COMMIT
        reach(_point("before"), _here.run_id, _here.step)
        let(fence, connection, way)
        return
    let(fence, connection, way)
    _commit()


def _point(when: str) -> str:
    return f"{when} a checkpoint" if _here.checkpoint else f"{when} the commit"


def _commit() -> None:
    points = (_point("before"),) if _here.checkpoint else (_point("before"), "between binds")
    if _here.commits < len(points):
        reach(points[_here.commits], _here.run_id, _here.step)
    _here.commits += 1


def _to_commit_elsewhere(let: CallT, doors: Doors) -> None:
    _here.checkpoint = doors.fence.move is CHECKPOINT
    let(doors)
    _commit()


def _answered(answered: CallT, doors: Doors, session: t.Any) -> None:
    _here.commits = 0
    holds = doors.fence.move.target is Status.RUNNING and not _here.checkpoint
    reach(_point("after"), _here.run_id, _here.step, holds=holds)
    answered(doors, session)


def _move_alone(move: CallT, fence: Fence) -> None:
    reach("before the commit", _here.run_id, _here.step)
    move(fence)
    holds = fence.move.target is Status.RUNNING
    reach("after the commit", _here.run_id, _here.step, holds=holds)


def _publish(publish: CallT, runtime: t.Any, nudges: t.Sequence[t.Any]) -> None:
    publish(runtime, nudges)
    for nudge in nudges:
        if nudge.run_id == _here.run_id:
            reach("after the publish", _here.run_id, _here.step)
