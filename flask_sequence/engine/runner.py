"""Perform what a nudge points at: claim, perform, commit, go on or say what follows."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import signal
import traceback
import typing as t

from ..definition.data import decode_text
from ..definition.registry import RunInfo
from ..definition.retry import RetryPolicy, crash_delay
from ..errors import (
    ClaimLost,
    DataError,
    FailInterrupt,
    FinishInterrupt,
    RetryInterrupt,
    TransactionDoomedError,
)
from ..failures import Failure, failure_of, one_line, sentence
from ..masking import secrets_in
from ..rows import moves
from ..rows.claims import Claim, holds
from ..rows.driver_errors import is_after_failure, is_transient
from ..rows.moves import Move
from ..runtime import Runtime
from ..status import Status
from .attempt import FRESH_TRIES, LEFT_ALONE, Attempt, Outcome
from .claiming import Message, claim_run, stand_in, tell_trouble
from .connections import give_back
from .contexts import own_context
from .doors import fenced, unfenced
from .fence import Fence, State
from .forks import end_if_forked
from .in_hand import in_hand
from .own_errors import is_free
from .patience import make_move, pause, read_row

logger: logging.Logger = logging.getLogger("flask_sequence")

__all__ = ["Message", "Outcome", "advance", "stand_in", "tell_trouble"]

_TERMINATED = (signal.SIGTERM - 256, signal.SIGQUIT - 256)
"""How a pool's child exits at SIGTERM; at SIGQUIT where ``REMAP_SIGTERM`` says so."""
LONGEST_WAIT = 30.0
"""The most seconds until a step that has to wait for the database is tried again."""


def advance(
    runtime: Runtime,
    run_id: int,
    version: int,
    *,
    ignore_due: bool = False,
    message: Message | None = None,
    is_shutdown: t.Callable[[BaseException], bool] = lambda error: False,
) -> Outcome:
    """Perform the step that a run stands at, and those after it while the burst lasts.

    :param runtime: The application's runtime.
    :param run_id: The run.
    :param version: The version that the nudge names; of any other nothing is performed.
    :param ignore_due: Whether to perform it before its time.
    :param message: What came with the nudge; None: it did not travel.
    :param is_shutdown: Tells the exceptions by which a process is asked to end.
    :return: What came of it, and what is to be published.
    """
    # In hand before the claim, so that there is none that nobody works on; and in a context,
    # since listeners of the application may want its config.
    with in_hand(runtime, run_id), unfenced(), own_context(runtime):
        try:
            attempt = claim_run(
                runtime,
                run_id,
                version,
                ignore_due=ignore_due,
                message=message,
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
    body = _Body(attempt)
    fence = Fence(attempt.runtime, attempt.claim, lambda: body.data)
    try:
        error = _perform(body, fence)
        return _what_follows(body, fence, error)
    except BaseException as error:
        # When it is killed, by a time limit, the keeper counts the crash.
        if not _is_killed(attempt, error):
            with contextlib.suppress(Exception):
                _leave(attempt, fence.claim, error)
        raise


def _leave(attempt: Attempt, claim: Claim, error: BaseException) -> None:
    """Leave no claim behind: hand it back where the process is asked to end, else as if it died.

    What is raised by something else than the step may be raised again and again. Where it is the
    database that has refused each try, it is waited for first.
    """
    text, most = Failure(one_line(error)).in_ascii().error, attempt.runtime.settings.max_crashes
    if _ends_process(attempt, error):
        make_move(attempt.runtime, claim, moves.hand_back(claim, delay=0.0, error=text))
        return
    if is_transient(error) and claim.waits < most:
        wait = _wait_seconds(attempt, claim)
        back = moves.hand_back(claim, delay=wait, error=text, waits=1)
        make_move(attempt.runtime, claim, back)
        return
    crashes = claim.crashes + 1
    delay = None if crashes >= most else crash_delay(crashes)
    crash = moves.crash(claim, delay=delay, error=text, label=attempt.runtime.label)
    try:
        make_move(attempt.runtime, claim, crash)
    except Exception:  # perhaps it is the history that cannot be written
        make_move(attempt.runtime, claim, dataclasses.replace(crash, history=None))


def _what_follows(body: _Body, fence: Fence, error: BaseException | None) -> Attempt | Outcome:
    attempt = body.attempt
    if fence.state is not State.MOVED and (fence.is_unknown or not _tells_of_the_step(error)):
        settled = _settle(attempt, fence)
        if settled is not None:
            return settled
    if error is not None and _ends_process(attempt, error):
        raise error
    if fence.state is State.MOVED:
        assert fence.sent is not None
        return attempt.after(fence.claim, fence.sent.move)
    attempt = dataclasses.replace(attempt, claim=fence.claim)
    if error is None or isinstance(error, ClaimLost):
        error = TransactionDoomedError("The commit came back, and nothing was committed.")
    return _after_error(attempt, error, asked=fence.asked_to_repeat, secrets=body.secrets())


def _tells_of_the_step(error: BaseException | None) -> bool:
    # Another process's write of the run's row shows as an error of the database, too.
    return error is not None and not isinstance(error, ClaimLost) and not is_free(error)


# The body, and its commit


class _Body:
    """The step of an attempt while it is performed, with its data."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.step: t.Any = None
        self._data: dict[str, t.Any] = {}

    @property
    def data(self) -> t.Any:
        return self._data if self.step is None else self.step.data

    def secrets(self) -> tuple[str, ...]:
        """Collect what must not be told of the data, as they were and as they are."""
        found: set[str] = set()
        for read in (lambda: self._data, lambda: self.data):
            with contextlib.suppress(Exception):  # the step may have put anything there
                found.update(secrets_in(read()))
        return tuple(sorted(found, key=len, reverse=True))

    def load(self) -> None:
        """Decode the data of the claim."""
        try:
            self._data = decode_text(self.attempt.claim.data)
        except ValueError as error:
            problem = f"is stored as something else than JSON ({error}); correct the row"
            raise DataError("data", problem) from error

    def run(self) -> Move:
        """Perform the step, and return the move that follows."""
        attempt, claim = self.attempt, self.attempt.claim
        info = RunInfo(claim.id, claim.uid, claim.sequence, claim.key, claim.created_at)
        self.step = attempt.step.cls._prepare(info, self._data, claim.attempt)
        try:
            self.step._check_end(attempt.runtime.app.ensure_sync(self.step.perform)())
        except BaseException as error:
            if isinstance(error, ClaimLost) or _ends_process(attempt, error):
                raise
            ended = self.step._ended_by(error)
            if isinstance(ended, FinishInterrupt):
                return moves.finish(label=attempt.runtime.label)
            if ended is error:
                raise
            raise ended from ended.__cause__
        return attempt.next_move


def _perform(body: _Body, fence: Fence) -> BaseException | None:
    """Perform the step in an app context of its own, and return the exception that ended it."""
    error: BaseException | None = None
    try:
        with own_context(body.attempt.runtime):
            error = _perform_in_context(body, fence)
    except BaseException as late:
        return late if error is None else error
    return error


def _perform_in_context(body: _Body, fence: Fence) -> BaseException | None:
    with fenced(fence) as doors:
        try:
            body.load()
            move = body.run()
            end_if_forked(body.attempt)
            doors.commit(move)
        except BaseException as error:
            end_if_forked(body.attempt, error)
            if isinstance(error, MemoryError):
                # What filled the memory may stand in the step's variables, and the rest needs some.
                traceback.clear_frames(error.__traceback__)
            doors.roll_back()
            return error
    return None


# What came of it


def _settle(attempt: Attempt, fence: Fence) -> Outcome | None:
    """Read what became of the claim; None: it is still ours, and the fence knows it."""
    claim = fence.claim
    row = read_row(attempt.runtime, claim.id)
    if row is None:
        return Outcome(status=Status.FINISHED)
    if fence.is_unknown:
        assert fence.sent is not None
        if fence.sent.move.went_through(claim, row):
            fence.settle(went_through=True)
            return None
    if row.version == claim.version and holds(claim, row):
        if fence.is_unknown:
            fence.settle(went_through=False)
        return None
    _tell(logging.INFO, "%s is no longer held by this process", attempt.place)
    return LEFT_ALONE


def _ends_process(attempt: Attempt, error: BaseException) -> bool:
    ctrl_c = isinstance(error, KeyboardInterrupt) and attempt.runtime.worker is None
    # A step may raise the same; it is asked again then, and again.
    stops = attempt.runtime.is_stopping and attempt.is_shutdown(error)
    return ctrl_c or stops or _is_killed(attempt, error)


def _is_killed(attempt: Attempt, error: BaseException) -> bool:
    # By this the pool's signal is known, which is followed by SIGKILL a tenth of a second later.
    killed = isinstance(error, SystemExit) and error.code in _TERMINATED
    return killed and attempt.runtime.worker is not None


def _after_error(
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
    failure, label = failure_of(cause, secrets), attempt.runtime.label
    if isinstance(error, FailInterrupt):
        failure = Failure(sentence(error.reason, secrets) or "self.fail()")
    if delay is None:
        outcome = _store(attempt, failure, lambda kept: moves.fail(kept, label=label), cause)
        _tell_of(outcome, attempt, logging.ERROR, "failed", failure.error)
        return outcome
    outcome = _store(
        attempt,
        failure,
        lambda kept: moves.reschedule(attempt.claim, kept, delay=delay, label=label),
    )
    _tell_of(outcome, attempt, logging.WARNING, f"is retried in {delay:.1f} s", failure.error)
    return outcome


def _tell_of(
    outcome: Attempt | Outcome, attempt: Attempt, level: int, what: str, error: str
) -> None:
    if outcome is not LEFT_ALONE:
        _tell(level, "%s %s: %s", attempt.place, what, error)


def _tell(level: int, text: str, *values: object) -> None:
    # A filter of the application's that raises must not undo what has been stored.
    with contextlib.suppress(Exception):
        logger.log(level, text, *values)


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
        _tell(logging.INFO, "%s is no longer held by this process", attempt.place)
        return LEFT_ALONE
    raise refused


def _judge(attempt: Attempt, error: BaseException) -> tuple[BaseException, float | None]:
    """Return what is to be kept of an error, and the delay of the next try; None: it has failed."""
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
