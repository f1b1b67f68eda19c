"""One attempt at a step under a claim, and what came of a nudge."""

from __future__ import annotations

import dataclasses
import datetime
import signal
import time
import typing as t

from ..definition.registry import SequenceDefinition, StepDefinition
from ..rows import moves
from ..rows.claims import Claim
from ..rows.moves import Move
from ..runtime import Nudge, Runtime
from ..status import Status

FRESH_TRIES = 5
"""How often a step is begun again at once when the database asks for it."""
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGQUIT") if hasattr(signal, name)]
_TERMINATED = tuple(number - 256 for number in _SIGNALS)
"""How a pool's child exits at SIGTERM; at SIGQUIT where ``REMAP_SIGTERM`` says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a nudge.

    :param status: Where the run stands now; None: it was left alone.
    :param nudge: What is to be published.
    :param attempts: How many attempts were made at its steps.
    :param error: The user's exception that failed the run.
    """

    status: Status | None = None
    nudge: Nudge | None = None
    attempts: int = 0
    error: BaseException | None = None


LEFT_ALONE = Outcome()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at one step, under a claim."""

    runtime: Runtime
    sequence: SequenceDefinition
    step: StepDefinition
    claim: Claim
    begun_at: datetime.datetime
    """When the run was claimed, by the database's clock."""
    claimed_at: float = dataclasses.field(default_factory=lambda: time.monotonic())
    """The same by this machine's monotonic clock, in seconds."""
    tries: int = 0
    """How often it was begun again since the database asked for it."""
    is_shutdown: t.Callable[[BaseException], bool]

    @property
    def place(self) -> str:
        """The run, the step and the attempt, for logs."""
        claim = self.claim
        return f"Run {claim.id}, step {claim.sequence}.{claim.step}, attempt {claim.attempt},"

    @property
    def next_step(self) -> StepDefinition | None:
        """The step that follows."""
        return self.sequence.after(self.step.name)

    @property
    def next_move(self) -> Move:
        """The move with which the step ends where nothing interrupts it."""
        label, following = self.runtime.label, self.next_step
        if following is None:
            return moves.finish(label=label)
        if self.can_hold:
            return moves.hold(following.name, label=label)
        queue = self.runtime.queue_of(following.options, self.claim.options)
        return moves.advance(following.name, queue=queue, label=label)

    @property
    def can_hold(self) -> bool:
        """Whether this process may go on with the next step itself."""
        following = self.next_step
        if following is None or self.runtime.is_stopping:
            return False
        if self._held_seconds >= self.runtime.burst_seconds:
            return False
        mine, its = self.step.options, following.options
        limits = (mine.time_limit, mine.soft_time_limit, its.time_limit, its.soft_time_limit)
        queues = {self.runtime.queue_of(options, self.claim.options) for options in (mine, its)}
        return not any(limits) and len(queues) == 1 and mine.priority == its.priority

    @property
    def _held_seconds(self) -> float:
        return time.monotonic() - self.claimed_at

    def ends_process(self, error: BaseException) -> bool:
        """Tell whether an exception ends the process rather than the step."""
        ctrl_c = isinstance(error, KeyboardInterrupt) and self.runtime.worker is None
        # A step may raise the same; it is asked again then, and again.
        stops = self.runtime.is_stopping and self.is_shutdown(error)
        return ctrl_c or stops or self.is_killed(error)

    def is_killed(self, error: BaseException) -> bool:
        """Tell whether an exception announces that this process is killed."""
        # By this the pool's signal is known; a tenth of a second later comes SIGKILL.
        killed = isinstance(error, SystemExit) and error.code in _TERMINATED
        return killed and self.runtime.worker is not None

    def again(self) -> Attempt:
        """Make the same attempt once more, since the database asks for it."""
        return dataclasses.replace(self, tries=self.tries + 1)

    def after(
        self, claim: Claim, move: Move, error: BaseException | None = None
    ) -> Attempt | Outcome:
        """Tell what follows on a move that was made.

        :param claim: The claim as of the move.
        :param move: The move.
        :param error: The user's exception that failed the run.
        """
        name = move.step or claim.step
        if move.target is Status.RUNNING:
            return self._at_next(claim, name)
        if move.target is not Status.WAITING:
            return Outcome(status=move.target, error=error)
        if not self.runtime.rides(move.delay):
            return Outcome(status=move.target)  # the sweep sends it
        step = self.sequence.get(name)
        assert step is not None
        nudge = self.runtime.nudge(claim, step.options, step=name, countdown=move.delay)
        return Outcome(status=move.target, nudge=nudge)

    def _at_next(self, claim: Claim, name: str) -> Attempt:
        now = self.begun_at + datetime.timedelta(seconds=self._held_seconds)
        held = claim._replace(
            step=name,
            attempt=1,
            retries=0,
            step_started_at=now,
            **moves.PROGRESS,
        )
        step = self.sequence.get(name)
        assert step is not None
        return dataclasses.replace(self, claim=held, step=step, tries=0)
