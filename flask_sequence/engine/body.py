"""The body of a step: it is performed in a context of its own, and committed through its fence."""

from __future__ import annotations

import contextlib
import traceback
import typing as t

from ..definition.data import decode_text
from ..definition.registry import RunInfo
from ..errors import ClaimLost, DataError, FinishInterrupt
from ..masking import secrets_in
from ..rows import moves
from ..rows.moves import Move
from .attempt import Attempt
from .commits import fenced
from .contexts import own_context
from .fence import Fence
from .forks import end_if_forked


class Body:
    """The step of an attempt while it is performed, with its data."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.step: t.Any = None
        self._data: dict[str, t.Any] = {}

    @property
    def data(self) -> t.Any:
        """The step's data as they are now."""
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
            problem = f"is stored as something other than JSON ({error}); correct the row"
            raise DataError("data", problem) from error

    def run(self) -> Move:
        """Perform the step, and return the move that follows."""
        attempt, claim = self.attempt, self.attempt.claim
        info = RunInfo(claim.id, claim.uid, claim.sequence, claim.key, claim.created_at)
        self.step = attempt.step.cls._prepare(info, self._data, claim.attempt)
        try:
            self.step._check_end(attempt.runtime.app.ensure_sync(self.step.perform)())
        except BaseException as error:
            if isinstance(error, ClaimLost) or attempt.ends_process(error):
                raise
            ended = self.step._ended_by(error)
            if isinstance(ended, FinishInterrupt):
                return moves.finish(label=attempt.runtime.label)
            if ended is error:
                raise
            raise ended from ended.__cause__
        return attempt.next_move


def perform(body: Body, fence: Fence) -> BaseException | None:
    """Perform the step in an app context of its own, and return the exception that ended it."""
    error: BaseException | None = None
    try:
        with own_context(body.attempt.runtime):
            error = _perform_in_context(body, fence)
    except BaseException as late:
        return late if error is None else error
    return error


def _perform_in_context(body: Body, fence: Fence) -> BaseException | None:
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
