"""Perform what a nudge points at: claim, perform, commit, go on or say what follows."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import typing as t

from ..errors import ClaimLost, TransactionDoomedError
from ..rows.claims import holds
from ..rows.moves import Move
from ..runtime import Runtime
from ..status import Status
from .attempt import Attempt, Outcome
from .body import Body, perform
from .claiming import Message, claim_run, stand_in, tell_trouble
from .commits import unfenced
from .connections import give_back
from .contexts import own_context
from .failing import after_error, leave, left_to_others
from .fence import Fence, State
from .in_hand import in_hand
from .own_errors import is_free
from .patience import read_row

logger: logging.Logger = logging.getLogger("flask_sequence")

__all__ = ["Message", "Outcome", "advance", "stand_in", "tell_trouble"]


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
    body = Body(attempt)
    fence = Fence(attempt.runtime, attempt.claim, lambda: body.data)
    try:
        error = perform(body, fence)
        return _what_follows(body, fence, error)
    except BaseException as error:
        # When it is killed, by a time limit, the keeper counts the crash.
        if not attempt.is_killed(error):
            with contextlib.suppress(Exception):
                leave(attempt, fence.claim, error)
        raise


def _what_follows(body: Body, fence: Fence, error: BaseException | None) -> Attempt | Outcome:
    attempt = body.attempt
    if fence.state is not State.MOVED and (fence.is_unknown or not _tells_of_the_step(error)):
        settled = _settle(attempt, fence)
        if settled is not None:
            return settled
    if error is not None and attempt.ends_process(error):
        raise error
    if fence.state is State.MOVED:
        assert fence.sent is not None
        if logger.isEnabledFor(logging.INFO):
            _tell_done(attempt, fence.sent.move)
        return attempt.after(fence.claim, fence.sent.move)
    attempt = dataclasses.replace(attempt, claim=fence.claim)
    if error is None or isinstance(error, ClaimLost):
        error = TransactionDoomedError("The commit came back, and nothing was committed.")
    return after_error(attempt, error, asked=fence.asked_to_repeat, secrets=body.secrets())


def _tell_done(attempt: Attempt, move: Move) -> None:
    with contextlib.suppress(Exception):  # a filter of the application's may raise
        follows = f"next is {move.step}" if move.step else f"the run is {move.target}"
        logger.info("%s is done: %s", attempt.place, follows)


def _tells_of_the_step(error: BaseException | None) -> bool:
    # Another process's write of the run's row shows as an error of the database, too.
    return error is not None and not isinstance(error, ClaimLost) and not is_free(error)


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
    return left_to_others(attempt)
