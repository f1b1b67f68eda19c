"""Perform what a nudge points at: claim, perform, commit, go on or say what follows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import random
import signal
import traceback
import typing as t

from ..definition.data import decode_text
from ..definition.registry import RunInfo
from ..definition.retry import RetryPolicy
from ..errors import (
    ClaimLost,
    DataError,
    FailInterrupt,
    FinishInterrupt,
    RetryInterrupt,
    TransactionDoomedError,
)
from ..failures import long_text, one_line, sentence
from ..rows import moves
from ..rows.claims import Row, holds
from ..rows.driver_errors import is_after_failure, is_transient
from ..runtime import Runtime
from ..status import Status
from .attempt import (
    FRESH_TRIES,
    LEFT_ALONE,
    Attempt,
    Limits,
    Outcome,
    claim_run,
    move,
    pause,
    read_row,
    stand_in,
)
from .fence import Fence, Move, fenced, unfenced
from .sessions import give_back, own_context

logger: logging.Logger = logging.getLogger("flask_sequence")

__all__ = ["Limits", "Outcome", "advance", "stand_in"]

_TERMINATED = (signal.SIGTERM - 256, signal.SIGQUIT - 256)
"""How a pool's child exits at SIGTERM; at SIGQUIT where ``REMAP_SIGTERM`` says so."""


def advance(
    runtime: Runtime,
    run_id: int,
    version: int,
    *,
    ignore_due: bool = False,
    limits: Limits | None = None,
    label: str = "",
    is_shutdown: t.Callable[[BaseException], bool] = lambda error: False,
) -> Outcome:
    """Perform the step that a run stands at, and those after it while the burst lasts.

    :param runtime: The application's runtime.
    :param run_id: The run.
    :param version: The version that the nudge names; of any other nothing is performed.
    :param ignore_due: Whether to perform it before its time.
    :param limits: The time limits of the message that brought the nudge; None: do not compare.
    :param label: The sequence and the step that the message names in logs, perhaps; a hint.
    :param is_shutdown: Tells the exceptions by which a process is asked to end.
    :return: What came of it, and what is to be published.
    """
    try:
        with unfenced():
            attempt = claim_run(
                runtime,
                run_id,
                version,
                ignore_due=ignore_due,
                limits=limits,
                label=label,
                is_shutdown=is_shutdown,
            )
            if isinstance(attempt, Outcome):
                return attempt
            attempts = 0
            while isinstance(attempt, Attempt):
                attempts += attempt.tries == 0
                attempt = _make(attempt)
            return dataclasses.replace(attempt, attempts=attempts)
    finally:
        give_back(runtime)


def _make(attempt: Attempt) -> Attempt | Outcome:
    """Make one attempt: perform the step, commit it, and see what came of it."""
    try:
        data = decode_text(attempt.claim.text)
    except DataError as unreadable:
        return _failed(attempt, unreadable)
    body = _Body(attempt, data)
    fence = Fence(attempt.runtime, attempt.claim, lambda: body.data, is_encoded=attempt.is_encoded)
    try:
        error = _perform(body, fence)
        return _what_follows(attempt, fence, error)
    except BaseException as error:
        # The process is asked to end, or something of its own went wrong: no claim stays behind.
        # When it is killed, by a time limit, the keeper counts the crash.
        if not _is_killed(attempt, error):
            held = dataclasses.replace(attempt, claim=fence.claim)
            with contextlib.suppress(Exception):
                move(held, moves.hand_back, delay=0.0, error=one_line(error))
        raise


def _what_follows(attempt: Attempt, fence: Fence, error: BaseException | None) -> Attempt | Outcome:
    if fence.unknown or not (fence.moved or _tells_of_the_step(error)):
        settled = _settle(attempt, fence)
        if settled is not None:
            return settled
    if error is not None and _ends_process(attempt, error):
        raise error
    if fence.moved:
        return _moved_on(attempt, fence)
    attempt = dataclasses.replace(attempt, claim=fence.claim, is_encoded=True)
    if error is None or isinstance(error, ClaimLost):
        error = TransactionDoomedError("The commit came back, and nothing was committed.")
    return _after_error(attempt, error)


def _tells_of_the_step(error: BaseException | None) -> bool:
    # Another process's write of the run's row shows as an error of the database, too.
    lost = error is None or isinstance(error, ClaimLost)
    return not lost and not is_transient(t.cast(BaseException, error))


# The body, and its commit


class _Body:
    """The step of an attempt while it is performed, with its data."""

    def __init__(self, attempt: Attempt, data: dict[str, t.Any]) -> None:
        self.attempt = attempt
        self.step: t.Any = None
        self._data = data

    @property
    def data(self) -> t.Any:
        return self._data if self.step is None else self.step.data

    def run(self) -> Move:
        """Perform the step, and give the move that follows."""
        attempt, claim = self.attempt, self.attempt.claim
        info = RunInfo(claim.id, claim.uid, claim.sequence, claim.key, claim.created_at)
        self.step = attempt.step.cls._prepare(info, self._data, claim.attempt)
        try:
            self.step._check_end(attempt.runtime.app.ensure_sync(self.step.perform)())
        except FinishInterrupt:
            return functools.partial(moves.finish, label=attempt.runtime.label)
        return self._next_move()

    def _next_move(self) -> Move:
        attempt = self.attempt
        label, following = attempt.runtime.label, attempt.next_step
        if following is None:
            return functools.partial(moves.finish, label=label)
        queue = attempt.runtime.queue_of(following.options, attempt.claim.options)
        return functools.partial(
            moves.advance, step=following.name, queue=queue, label=label, hold=attempt.can_hold
        )


def _perform(body: _Body, fence: Fence) -> BaseException | None:
    """Perform the step in an app context of its own, and give the exception that ended it."""
    ended, error = False, None
    try:
        with own_context(body.attempt.runtime):
            error = _perform_in_context(body, fence)
            ended = True
    except BaseException as late:
        if not ended or (error is None and not isinstance(late, Exception)):
            return late
        name = body.attempt.step.name
        logger.exception("After step %s: an error in the application's teardown", name)
    return error


def _perform_in_context(body: _Body, fence: Fence) -> BaseException | None:
    session = body.attempt.runtime.db.session
    with fenced(fence):
        try:
            fence.move = body.run()
            fence.commit()
        except BaseException as error:
            if isinstance(error, MemoryError):
                # What filled the memory may stand in the step's variables, and the rest needs some.
                traceback.clear_frames(error.__traceback__)
            with contextlib.suppress(Exception):
                session.rollback()
            return error
    return None


# What came of it


def _moved_on(attempt: Attempt, fence: Fence) -> Attempt | Outcome:
    made = t.cast("functools.partial[bool]", fence.move)
    if made.func is moves.finish:
        return Outcome(status=Status.FINISHED)
    following = attempt.next_step
    assert following is not None
    if made.keywords["hold"]:
        return attempt.held_on(fence.claim, following)
    # Passing, the fence has counted the version up already.
    nudge = attempt.runtime.nudge(fence.claim, following.options, step=following.name)
    return Outcome(status=Status.WAITING, nudge=nudge)


def _settle(attempt: Attempt, fence: Fence) -> Outcome | None:
    """Read afresh what became of the claim; None: it is still ours, and the fence knows it."""
    claim = fence.claim
    row = read_row(attempt.runtime, claim.id)
    if row is None:
        return Outcome(status=Status.FINISHED)
    if row.version == claim.version and holds(claim, row):
        return None
    if fence.unknown and row.version == claim.version + 1 and _went_through(fence, row):
        fence.passed()
        return None
    logger.info("%s is no longer held by this process", attempt.place)
    return LEFT_ALONE


def _went_through(fence: Fence, row: Row) -> bool:
    if not fence.carries_move:
        return holds(fence.claim, row)
    made = t.cast("functools.partial[bool]", fence.move)
    if made.func is moves.finish:
        return row.status is Status.FINISHED
    # A run that somebody took over, or cancelled, has not got to the next step.
    status = Status.RUNNING if made.keywords["hold"] else Status.WAITING
    return bool((row.step, row.status) == (made.keywords["step"], status))


def _ends_process(attempt: Attempt, error: BaseException) -> bool:
    ctrl_c = isinstance(error, KeyboardInterrupt) and not attempt.runtime.in_worker
    return ctrl_c or _is_killed(attempt, error) or attempt.is_shutdown(error)


def _is_killed(attempt: Attempt, error: BaseException) -> bool:
    # By this the pool's signal is known, which is followed by SIGKILL a tenth of a second later.
    killed = isinstance(error, SystemExit) and error.code in _TERMINATED
    return killed and attempt.runtime.in_worker


def _after_error(attempt: Attempt, error: BaseException) -> Attempt | Outcome:
    # What failed first, and was swallowed, may have been a deadlock: a few fresh tries tell.
    doomed = isinstance(error, TransactionDoomedError) or is_after_failure(error)
    if (doomed or is_transient(error)) and attempt.tries < FRESH_TRIES:
        pause(attempt.tries)
        return attempt.again()
    if is_transient(error):
        return _handed_back(attempt, error)
    return _failed(attempt, error)


def _handed_back(attempt: Attempt, error: BaseException) -> Outcome:
    delay = attempt.runtime.settings.lease_seconds / 10 * random.uniform(0.8, 1.2)
    text = one_line(error)
    logger.warning("%s has to wait for the database: %s", attempt.place, text)
    moved = move(attempt, moves.hand_back, delay=delay, error=text)
    return _reported(attempt, moved, Status.WAITING, delay=delay)


def _failed(attempt: Attempt, error: BaseException) -> Outcome:
    """Keep what ended the step, and try it again by its policy, or fail the run."""
    cause, delay = _judge(attempt, error)
    label = attempt.runtime.label
    text, traceback = one_line(cause), t.cast("str | None", long_text(cause))
    if isinstance(error, FailInterrupt):
        text, traceback = sentence(error.reason) or "self.fail()", None
    kept = {"error": text, "traceback": traceback, "label": label}
    if delay is None:
        logger.error("%s failed: %s", attempt.place, text)
        moved = move(attempt, moves.fail, **kept)
        return _reported(attempt, moved, Status.FAILED, error=cause)
    logger.warning("%s is retried in %.1f s: %s", attempt.place, delay, text)
    moved = move(attempt, moves.reschedule, delay=delay, **kept)
    return _reported(attempt, moved, Status.WAITING, delay=delay)


def _judge(attempt: Attempt, error: BaseException) -> tuple[BaseException, float | None]:
    """Give what is to be kept of an error, and the delay of the next try; None: it has failed."""
    policy = attempt.step.options.retry
    limit, retries = attempt.runtime.settings.max_retries, attempt.claim.retries
    if isinstance(error, RetryInterrupt):
        delay = policy.delay(retries, default_limit=limit, countdown=error.countdown)
        return error.cause or error, delay
    if isinstance(error, (FailInterrupt, DataError)) or not _is_retried(policy, error):
        return error, None
    return error, policy.delay(retries, default_limit=limit)


def _is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    if isinstance(error, Exception):
        return policy.covers(error)
    # sys.exit() in a step, or an interrupt of the user's: "any exception" means them too.
    return policy.covers(error) or (
        Exception in policy.autoretry_for and not isinstance(error, policy.dont_autoretry_for)
    )


def _reported(
    attempt: Attempt,
    moved: bool,
    status: Status,
    *,
    delay: float = 0.0,
    error: BaseException | None = None,
) -> Outcome:
    if not moved:
        logger.info("%s is no longer held by this process", attempt.place)
        return LEFT_ALONE
    if status is Status.FAILED:
        return Outcome(status=status, error=error)
    return Outcome(status=status, nudge=attempt.nudge(attempt.step, delay))
