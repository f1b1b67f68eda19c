"""What follows on a step that failed: another try, at once or later; or the end of its run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import typing as t

from ..definition.retry import RetryPolicy, crash_delay
from ..errors import (
    DataError,
    FailInterrupt,
    RetryInterrupt,
    SetupError,
    TransactionDoomedError,
)
from ..failures import Failure, failure_of, one_line, sentence
from ..rows import moves
from ..rows.claims import Claim
from ..rows.driver_errors import is_after_failure, is_transient
from ..rows.moves import Move
from .attempt import FRESH_TRIES, LEFT_ALONE, Attempt, Outcome
from .own_errors import is_free
from .patience import make_move, pause

logger: logging.Logger = logging.getLogger("flask_sequence")

SOFT_LIMIT = ("billiard.exceptions", "SoftTimeLimitExceeded")
"""The exception that Celery raises in a step at its soft time limit: its module and name."""
LONGEST_WAIT = 30.0
"""The most seconds until a step that has to wait for the database is tried again."""


def after_error(
    attempt: Attempt, error: BaseException, *, asked: bool, secrets: t.Collection[str]
) -> Attempt | Outcome:
    """Begin the step again where the database asks for it, a bounded number of times; or fail it.

    First at once, then after growing pauses. Where nothing was seen but that the transaction could
    not be committed, one more try tells.
    """
    is_doomed = isinstance(error, TransactionDoomedError) or is_after_failure(error)
    if is_free(error) or is_doomed:
        claim, most = attempt.claim, FRESH_TRIES if asked or is_free(error) else 1
        if claim.waits == 0 and attempt.tries < most:
            pause(attempt.tries)
            return attempt.again()
        if is_free(error) and claim.waits < attempt.runtime.settings.max_crashes:
            return _wait(attempt, error, secrets)
    return _failed(attempt, error, secrets)


def _wait_seconds(attempt: Attempt, claim: Claim) -> float:
    first: float = attempt.runtime.settings.lease_seconds / 10
    return min(first * 2.0**claim.waits, LONGEST_WAIT) * random.uniform(0.8, 1.2)


def _wait(attempt: Attempt, error: BaseException, secrets: t.Collection[str]) -> Attempt | Outcome:
    claim = attempt.claim
    delay = _wait_seconds(attempt, claim)
    outcome = _store(
        attempt,
        failure_of(error, secrets),
        lambda kept: moves.hand_back(claim, delay=delay, error=kept.error, waits=1),
    )
    _tell_of(outcome, attempt, logging.WARNING, "has to wait for the database", one_line(error))
    return outcome


def _failed(
    attempt: Attempt, error: BaseException, secrets: t.Collection[str]
) -> Attempt | Outcome:
    """Keep what ended the step, and try it again by its policy, or fail the run."""
    cause, delay = _judge(attempt, error)
    told, label = failure_of(cause, secrets), attempt.runtime.label
    failure = told
    if isinstance(error, FailInterrupt):
        failure = Failure(sentence(error.reason, secrets) or "self.fail()")
    elif limit := _soft_limit(attempt, cause):
        failure = Failure(limit, told.traceback)
    elif isinstance(error, RetryInterrupt) and delay is None:
        failure = _used_up(attempt, error, told)
    if delay is None:
        outcome = _store(attempt, failure, lambda kept: moves.fail(kept, label=label), cause)
        if outcome is not LEFT_ALONE:
            _tell_failed(attempt, failure.error, cause, told.traceback)
        return outcome
    outcome = _store(
        attempt,
        failure,
        lambda kept: moves.reschedule(attempt.claim, kept, delay=delay, label=label),
    )
    most = attempt.step.options.retry.limit(attempt.runtime.settings.max_retries)
    count = f"retry {attempt.claim.retries + 1}" + ("" if most is None else f" of {most}")
    what = f"is retried in {delay:.1f} s ({count})"
    _tell_of(outcome, attempt, logging.WARNING, what, failure.error)
    return outcome


def _soft_limit(attempt: Attempt, error: BaseException) -> str | None:
    kind, limit = type(error), attempt.step.options.soft_time_limit
    if limit is None or (kind.__module__, kind.__name__) != SOFT_LIMIT:
        return None
    return f"{kind.__name__}: the step took longer than its soft time limit of {limit:g} s"


def _used_up(attempt: Attempt, error: RetryInterrupt, told: Failure) -> Failure:
    policy, default = attempt.step.options.retry, attempt.runtime.settings.max_retries
    text = (
        f"self.retry() was called with no retry left; {policy.setting} is {policy.limit(default)}"
    )
    return Failure(text, told.traceback) if error.cause is None else told.with_remark(text)


def left_to_others(attempt: Attempt) -> Outcome:
    """Say that somebody else has the run by now."""
    _tell(logging.INFO, "%s is no longer held by this process", attempt.place)
    return LEFT_ALONE


def _tell_of(
    outcome: Attempt | Outcome, attempt: Attempt, level: int, what: str, error: str
) -> None:
    if outcome is not LEFT_ALONE:
        _tell(level, "%s %s: %s", attempt.place, what, error)


def _tell(level: int, text: str, *values: object) -> None:
    # A filter of the application's that raises must not undo what has been stored.
    with contextlib.suppress(Exception):
        logger.log(level, text, *values)


def _tell_failed(attempt: Attempt, text: str, error: BaseException, traceback: str | None) -> None:
    """Log that a run has failed, with the exception: what collects errors groups them by it."""
    with contextlib.suppress(Exception):
        if not logger.isEnabledFor(logging.ERROR):
            return
        exc_info = (type(error), error, error.__traceback__)
        values = (attempt.place, text)
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, "%s failed: %s", values, exc_info
        )
        # What is written of it is what the history has: without secrets.
        record.exc_text = (traceback or "").rstrip() or None
        logger.handle(record)


def _store(
    attempt: Attempt,
    failure: Failure,
    make: t.Callable[[Failure], Move],
    error: BaseException | None = None,
) -> Attempt | Outcome:
    """Make a move that keeps a failure: as it is, in ASCII, or at last its type alone.

    :raises Exception: What the database answered to the last.
    """
    name = failure.in_ascii().error.partition(":")[0]
    for kept in (failure, failure.in_ascii(), Failure(name)):
        move = make(kept)
        try:
            moved = make_move(attempt.runtime, attempt.claim, move)
        except Exception as refusal:
            refused = refusal
            continue
        if moved:
            return attempt.after(attempt.claim.moved(), move, error)
        return left_to_others(attempt)
    raise refused


def _judge(attempt: Attempt, error: BaseException) -> tuple[BaseException, float | None]:
    """Return what is to be kept of an error, and the delay of the next try; None: it has failed."""
    policy = attempt.step.options.retry
    limit, retries = attempt.runtime.settings.max_retries, attempt.claim.retries
    if isinstance(error, RetryInterrupt):
        delay = policy.delay(retries, default_limit=limit, countdown=error.countdown)
        return error.cause or error, delay
    is_hopeless = isinstance(error, (FailInterrupt, DataError, SetupError))
    if is_hopeless or not _is_retried(policy, error):
        return error, None
    return error, policy.delay(retries, default_limit=limit)


def _is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    if isinstance(error, Exception):
        return policy.covers(error)
    # sys.exit() in a step, or an interrupt of the user's: "any exception" means them too.
    return policy.covers(error) or (
        Exception in policy.autoretry_for and not isinstance(error, policy.dont_autoretry_for)
    )


# What is no failure of the step


def leave(attempt: Attempt, claim: Claim, error: BaseException) -> None:
    """Leave no claim behind: hand it back where the process is asked to end, else as if it died.

    What is raised by something else than the step may be raised again and again. Where it is the
    database that has refused each try, it is waited for first.
    """
    text, most = Failure(one_line(error)).in_ascii().error, attempt.runtime.settings.max_crashes
    if attempt.ends_process(error):
        make_move(attempt.runtime, claim, moves.hand_back(claim, delay=0.0, error=text))
        return
    if is_transient(error) and claim.waits < most:
        wait = _wait_seconds(attempt, claim)
        back = moves.hand_back(claim, delay=wait, error=text, waits=1)
        make_move(attempt.runtime, claim, back)
        return
    delay = crash_delay(claim.crashes + 1, most=most)
    crash = moves.crash(claim, delay=delay, error=text, label=attempt.runtime.label)
    try:
        make_move(attempt.runtime, claim, crash)
    except Exception:  # perhaps it is the history that cannot be written
        make_move(attempt.runtime, claim, dataclasses.replace(crash, history=None))
