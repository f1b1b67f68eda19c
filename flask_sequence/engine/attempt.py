"""One attempt at a step: how it is claimed, and what came of a nudge."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import logging
import os
import random
import time
import typing as t
import uuid

from ..definition.registry import SequenceDefinition, StepDefinition, find_sequence
from ..failures import one_line
from ..rows import moves, reads, upkeep
from ..rows.claims import Claim, Row, is_known_format
from ..rows.driver_errors import is_transient
from ..runtime import Nudge, Runtime
from ..status import Status
from .sessions import own_move, own_statements, own_transaction

logger: logging.Logger = logging.getLogger("flask_sequence")

FRESH_TRIES = 5
"""How often something is begun again at once when the database asks for it."""
STAND_IN_SECONDS = 600.0
"""For how long a process that is no worker is taken to be alive once it performs a run."""
LONGEST_PAUSE = 2.0
"""The most seconds between two tries to reach the database."""

AnswerT = t.TypeVar("AnswerT")


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
    is_encoded: bool = False
    """Whether the data of the claim are as ``encode`` writes them, not as the database does."""
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
    def can_hold(self) -> bool:
        """Whether this process may go on with the next step itself."""
        following = self.next_step
        if following is None or self.runtime.is_stopping:
            return False
        if self._held_seconds >= self.runtime.settings.burst_seconds:
            return False
        mine, its = self.step.options, following.options
        limits = (mine.time_limit, mine.soft_time_limit, its.time_limit, its.soft_time_limit)
        queues = {self.runtime.queue_of(options, self.claim.options) for options in (mine, its)}
        return not any(limits) and len(queues) == 1 and mine.priority == its.priority

    @property
    def _held_seconds(self) -> float:
        return time.monotonic() - self.claimed_at

    def held_on(self, claim: Claim, step: StepDefinition) -> Attempt:
        """Make the first attempt at the next step, which the same claim holds.

        :param claim: The claim as of the last commit.
        :param step: The next step.
        """
        now = self.begun_at + datetime.timedelta(seconds=self._held_seconds)
        claim = claim._replace(step=step.name, attempt=1, retries=0, crashes=0, step_started_at=now)
        return dataclasses.replace(self, claim=claim, is_encoded=True, step=step, tries=0)

    def again(self) -> Attempt:
        """Make the same attempt once more, since the database asks for it."""
        return dataclasses.replace(self, tries=self.tries + 1)

    def nudge(self, step: StepDefinition, countdown: float = 0.0) -> Nudge | None:
        """Make the nudge for what follows the next move; None: the sweep sends it.

        :param step: The step that is to be performed.
        :param countdown: Seconds until then.
        """
        if not self.runtime.rides(countdown):
            return None
        version = self.claim.version + 1
        return self.runtime.nudge(
            self.claim, step.options, version=version, step=step.name, countdown=countdown
        )


Limits = tuple[float | None, float | None]
"""The hard and the soft time limit that a message carries, in seconds."""


def claim_run(
    runtime: Runtime,
    run_id: int,
    version: int,
    *,
    ignore_due: bool,
    limits: Limits | None,
    label: str,
    is_shutdown: t.Callable[[BaseException], bool],
) -> Attempt | Outcome:
    """Claim a run, if the nudge is not stale, the run is due, and its step is known here.

    :return: The attempt; or, where there is none, what came of the nudge.
    """
    for tries in itertools.count(1):
        sent = False
        try:
            with own_statements(runtime) as connection:
                expected = _expect(runtime, connection, limits, label)
                sent = expected is not None
                claim = expected and _claim(runtime, connection, run_id, version, expected=expected)
                if not claim:
                    sent = False  # the answer was no
                    row = reads.look(connection, run_id)
                    refused = _refuse(runtime, row, version, ignore_due)
                    if refused is None and limits is not None:
                        refused = _redirect(runtime, connection, row, limits)
                    if refused is not None:
                        return refused
                    sent = True
                    claim = _claim(runtime, connection, run_id, version, ignore_due=ignore_due)
            return _attempt_at(runtime, claim, is_shutdown) if claim else LEFT_ALONE
        except Exception as error:
            # It may have been made, although the answer has not come.
            claim = _until_answered(lambda: _held(runtime, run_id, version + 1)) if sent else None
            if claim is not None:
                return _attempt_at(runtime, claim, is_shutdown)
            if not is_transient(error):
                raise
            if tries == FRESH_TRIES:
                logger.warning("Run %s was not claimed: %s", run_id, one_line(error))
                return LEFT_ALONE  # The sweep brings it again.
            pause(tries)
    raise AssertionError("unreachable")  # pragma: no cover


def _refuse(runtime: Runtime, row: Row | None, version: int, ignore_due: bool) -> Outcome | None:
    if row is None or row.version != version or row.status is not Status.WAITING:
        return LEFT_ALONE
    if not is_known_format(row):
        logger.warning("Run %s was written by a newer release: left alone", row.id)
        return LEFT_ALONE
    found = _find(row.sequence, row.step)
    if found is None:
        logger.warning(
            "Run %s stands at %s.%s, which is not known here; is it in SEQUENCE_IMPORTS?",
            row.id,
            row.sequence,
            row.step,
        )
    if row.due_at is None or found is None:
        return LEFT_ALONE
    rest = (row.due_at - row.now).total_seconds()
    if ignore_due or rest <= 0:
        return None
    if not runtime.rides(rest):
        return LEFT_ALONE
    return Outcome(nudge=runtime.nudge(row, found[1].options, countdown=rest))


def _redirect(runtime: Runtime, connection: t.Any, row: Row, limits: Limits) -> Outcome | None:
    """Send a nudge again that came by another way than its step has since a deploy."""
    found = _find(row.sequence, row.step)
    assert found is not None
    nudge = runtime.nudge(row, found[1].options, version=row.version + 1, redirected=True)
    if (row.queue, *limits) == (nudge.queue, nudge.time_limit, nudge.soft_time_limit):
        return None
    moved = moves.redirect(connection, row.id, row.version, queue=nudge.queue)
    return Outcome(nudge=nudge) if moved else LEFT_ALONE


def _expect(
    runtime: Runtime, connection: t.Any, limits: Limits | None, label: str
) -> dict[str, str] | None:
    """Tell where a run must stand to be claimed unseen, by its message; None: look at it first.

    Databases other than PostgreSQL would have a stale nudge wait for whoever writes the row.
    """
    sequence, _, step = label.rpartition(".")
    found = _find(sequence, step)
    if found is None or connection.dialect.name != "postgresql":
        return None
    options = found[1].options
    if limits != (options.time_limit, options.soft_time_limit):
        return None
    return {"sequence": sequence, "step": step, "queue": runtime.queue_of(options, None)}


def _claim(
    runtime: Runtime, connection: t.Any, run_id: int, version: int, **conditions: t.Any
) -> Claim | None:
    return moves.claim(
        connection, run_id, version, worker_id=runtime.worker_id, pid=os.getpid(), **conditions
    )


def _held(runtime: Runtime, run_id: int, version: int) -> Claim | None:
    # A thread beside this one may have made the claim; then one of the two is not let commit.
    with own_statements(runtime) as connection:
        return reads.held(connection, run_id, version, worker_id=runtime.worker_id, pid=os.getpid())


def _attempt_at(
    runtime: Runtime, claim: Claim, is_shutdown: t.Callable[[BaseException], bool]
) -> Attempt:
    found = _find(claim.sequence, claim.step)
    assert found is not None
    sequence, step = found
    return Attempt(
        runtime=runtime,
        sequence=sequence,
        step=step,
        claim=claim,
        begun_at=claim.step_started_at,
        is_shutdown=is_shutdown,
    )


def _find(sequence: str, step: str) -> tuple[SequenceDefinition, StepDefinition] | None:
    definition = find_sequence(sequence)
    found = definition.get(step) if definition else None
    return (definition, found) if definition and found else None


def stand_in(runtime: Runtime) -> None:
    """Count this process as a worker for a while, where it performs runs without being one."""
    if runtime.in_worker:
        return
    mine = f"{os.getpid():x}-"
    if runtime.worker_id is None or not runtime.worker_id.startswith(mine):
        runtime.worker_id = (mine + uuid.uuid4().hex)[:32]
    with own_transaction(runtime) as connection:
        upkeep.renew_worker(
            connection,
            runtime.worker_id,
            host=runtime.host,
            pid=os.getpid(),
            lease=STAND_IN_SECONDS,
        )


# The database, for as long as it takes


def move(attempt: Attempt, change: t.Callable[..., bool], **values: t.Any) -> bool:
    """Make a move of ``moves`` for a claim, and wait for the database as long as it takes.

    :param attempt: The attempt whose claim it is.
    :param change: The move.
    :param values: What it takes besides the claim.
    :return: Whether it was made; False: the claim is lost.
    """
    tried = False

    def change_once() -> bool:
        nonlocal tried
        again, tried = tried, True
        with own_move(attempt.runtime) as connection:
            # Of a try whose answer did not come, the next one finds the version gone.
            return change(connection, attempt.claim, **values) or again

    return _until_answered(change_once)


def read_row(runtime: Runtime, run_id: int) -> Row | None:
    """Read where a run stands, and wait for the database as long as it takes."""

    def read_once() -> Row | None:
        with own_statements(runtime) as connection:
            return reads.look(connection, run_id)

    return _until_answered(read_once)


def _until_answered(ask: t.Callable[[], AnswerT]) -> AnswerT:
    for tries in itertools.count(1):
        try:
            return ask()
        except Exception as error:
            if tries >= FRESH_TRIES and not is_transient(error):
                raise
            if tries == FRESH_TRIES:
                logger.warning("Waiting for the database: %s", one_line(error))
            pause(tries)
    raise AssertionError("unreachable")  # pragma: no cover


def pause(tries: int) -> None:
    """Wait before the next try, longer from try to try."""
    time.sleep(min(0.02 * 2 ** min(tries, 10), LONGEST_PAUSE) * random.uniform(0.5, 1.0))
