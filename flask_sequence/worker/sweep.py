"""What is due and held by nobody is published again; what is left behind is taken up."""

from __future__ import annotations

import functools
import logging
import time
import typing as t

from ..definition.retry import crash_delay
from ..engine.control import options_of
from ..engine.sessions import own_transaction
from ..failures import one_line
from ..rows import moves, reads, upkeep
from ..rows.claims import Claim
from ..rows.driver_errors import is_integrity_error, is_transient
from ..runtime import Nudge, Runtime
from ..status import Status

logger: logging.Logger = logging.getLogger("flask_sequence")

PURGED_AT_ONCE = 500
PURGE_SECONDS = 0.2
"""How long the keeper purges before it looks after its children again."""
MOVED_AT_ONCE = 500
MOVE_SECONDS = 1.0
"""How long one sweep blocks runs and lets them go on."""
CLAIM_SECONDS = 0.2
"""How long a claim may take after Celery has begun to count a time limit."""
GONE_SECONDS = 3600.0
"""After how long the row of a worker that ended without a word is removed."""

Connect = t.Callable[[], t.ContextManager[t.Any]]
"""Opens a short transaction."""


def due_nudges(
    runtime: Runtime, connect: Connect, queues: t.Collection[str], room: int
) -> list[Nudge]:
    """Take up to ``room`` of the runs that are due and unheld, and note that they are published.

    :param runtime: The application's runtime.
    :param connect: Opens a short transaction.
    :param queues: The queues that this worker consumes.
    :param room: How many nudges the broker may take.
    :return: The nudges; those of steps that are not known here are left out.
    """
    # Half an interval: what one pass published and nobody got, the next one sends again.
    quiet = (runtime.settings.sweep_seconds or 0.0) / 2
    with connect() as connection:
        rows = reads.due(connection, queues=queues, quiet=quiet, limit=room)
        found = [(row, options_of(row.sequence, row.step)) for row in rows]
        known = [(row, options) for row, options in found if options is not None]
        if known:
            moves.mark_published(connection, [row.id for row, _ in known])
    return [runtime.nudge(row, options) for row, options in known]


def free(runtime: Runtime, connect: Connect, claims: t.Iterable[Claim], reason: str) -> list[Nudge]:
    """Take runs from processes that are gone: a crash of their step.

    All in one transaction, without waiting for a row that somebody else is just writing.

    :param runtime: The application's runtime.
    :param connect: Opens a short transaction.
    :param claims: What the processes held; a small batch.
    :param reason: What happened to them, for ``run.error``.
    :return: The nudges for what can be tried again soon.
    """
    held = {claim.id: claim for claim in claims}
    if not held:
        return []
    with connect() as connection:
        unlocked = reads.lock(connection, list(held))
        freed = [_free_one(runtime, connection, held[run_id], reason) for run_id in unlocked]
    return [nudge for nudge in freed if nudge is not None]


def _free_one(runtime: Runtime, connection: t.Any, claim: Claim, reason: str) -> Nudge | None:
    crashes = claim.crashes + 1
    failed = crashes >= runtime.settings.max_crashes
    delay = None if failed else crash_delay(crashes)
    error = _crash_text(runtime, claim, reason)
    label = f"{claim.worker_id}:{claim.pid}"
    where = f"Run {claim.id}, step {claim.sequence}.{claim.step}, attempt {claim.attempt}"
    try:
        with connection.begin_nested():
            moved = moves.crash(connection, claim, delay=delay, error=error, label=label)
    except Exception as refusal:
        if is_transient(refusal):
            raise
        logger.error("%s cannot be taken up: %s", where, one_line(refusal))
        return None
    if not moved:
        return None
    logger.warning("%s: %s%s", where, error, "; it has crashed too often" if failed else "")
    options = options_of(claim.sequence, claim.step)
    if delay is None or options is None or not runtime.rides(delay):
        return None
    return runtime.nudge(claim, options, version=claim.version + 1, countdown=delay)


def _crash_text(runtime: Runtime, claim: Claim, reason: str) -> str:
    options = options_of(claim.sequence, claim.step)
    limit = (options and options.time_limit) or runtime.time_limit
    # Celery counts from before the claim.
    if limit is not None and claim.held_seconds >= limit - CLAIM_SECONDS:
        return f"TimeLimitExceeded: the step took longer than its time limit of {limit:g} s"
    return f"Crash: {reason}"


def mark_unknown(runtime: Runtime, connect: Connect, queues: t.Collection[str]) -> None:
    """waiting -> blocked for steps that are due, unclaimed and not known here; and back.

    :param queues: The queues that this worker consumes.
    """
    overdue = 2 * (runtime.settings.sweep_seconds or 0.0)
    with connect() as connection:
        waiting = reads.overdue_steps(connection, queues=queues, overdue=overdue)
        blocked = reads.blocked_steps(connection)
    until = time.monotonic() + MOVE_SECONDS
    for sequence, step in waiting:
        if options_of(sequence, step) is None:
            error = _unknown_text(runtime, sequence, step)
            block = functools.partial(moves.block, queues=queues, overdue=overdue, error=error)
            count = _move_all(connect, block, sequence, step, until)
            logger.warning("%s runs are blocked: %s", count, error)
    for sequence, step in blocked:
        if options_of(sequence, step) is not None:
            count = _move_all(connect, moves.unblock, sequence, step, until)
            logger.info("%s runs at %s.%s go on", count, sequence, step)


def _move_all(
    connect: Connect, move: t.Callable[..., int], sequence: str, step: str, until: float
) -> int:
    """Move runs in small batches, and leave the rest to the next sweep when the time is up."""
    moved = 0
    while True:
        with connect() as connection:
            count = move(connection, sequence, step, limit=MOVED_AT_ONCE)
        moved += count
        if count < MOVED_AT_ONCE or time.monotonic() >= until:
            return moved


def _unknown_text(runtime: Runtime, sequence: str, step: str) -> str:
    text = f"No worker knows the step {step!r} of the sequence {sequence!r}."
    if not runtime.settings.imports:
        text += " Does SEQUENCE_IMPORTS name the module that defines it?"
    return text


def purge(runtime: Runtime, connect: Connect) -> bool:
    """Delete what ended longer ago than ``SEQUENCE_RETENTION``, in small batches.

    :return: Whether there is more: it stops when it has taken ``PURGE_SECONDS``.
    """
    retention = runtime.settings.retention_seconds
    if retention is None:
        return False
    with connect() as connection:
        upkeep.remove_workers_gone_for(connection, GONE_SECONDS)
    until = time.monotonic() + PURGE_SECONDS
    while _purge_batch(connect, retention) == PURGED_AT_ONCE:
        if time.monotonic() >= until:
            return True
    return False


def _purge_batch(connect: Connect, retention: float) -> int:
    run_ids: list[int] = []
    try:
        with connect() as connection:
            run_ids = upkeep.ended_before(connection, retention, PURGED_AT_ONCE)
            if run_ids:
                upkeep.delete(connection, run_ids)
    except Exception as error:
        _check_needed(error)
        for run_id in run_ids:
            delete_or_empty(connect, run_id)
    return len(run_ids)


def delete_if_ended(runtime: Runtime, run_id: int, status: Status | None) -> None:
    """Delete a run right after its last step, where ``SEQUENCE_RETENTION`` is 0."""
    if status is not Status.FINISHED or runtime.settings.retention_seconds != 0:
        return
    try:
        delete_or_empty(functools.partial(own_transaction, runtime), run_id)
    except Exception as error:
        # The run has finished: its caller must not be told that it has not.
        logger.warning("Run %s is left to the sweep to delete: %s", run_id, one_line(error))


def delete_or_empty(connect: Connect, run_id: int) -> None:
    """Delete a final run; where a foreign key still needs its row, take its data from it."""
    if not delete(connect, [run_id]):
        with connect() as connection:
            upkeep.empty(connection, run_id)
        logger.warning(
            "Run %s is kept, without its data, since a foreign key of another table needs its row:"
            ' give that key ondelete="SET NULL"',
            run_id,
        )


def delete(connect: Connect, run_ids: t.Collection[int]) -> bool:
    """Delete final runs and their history, unless a foreign key needs one of them."""
    try:
        with connect() as connection:
            upkeep.delete(connection, run_ids)
    except Exception as error:
        _check_needed(error)
        return False
    return True


def _check_needed(error: Exception) -> None:
    """Raise an error anew, unless it says that a foreign key needs a run."""
    if is_transient(error) or not is_integrity_error(error):
        raise error
    logger.debug("Not deleted: %s", one_line(error))
