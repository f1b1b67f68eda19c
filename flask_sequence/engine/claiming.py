"""How a run is claimed: what a nudge points at, and whether this process takes it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import typing as t
import uuid

import sqlalchemy as sa

from ..broker.problems import shown_broker
from ..definition.data import decode_text, encode
from ..definition.registry import SequenceDefinition, StepDefinition, find_sequence
from ..failures import Failure, one_line, sanitise
from ..rows import moves, reads, upkeep
from ..rows.claims import Claim, Row, is_known_format
from ..rows.driver_errors import is_row_locked, is_transient
from ..runtime import Runtime, mark_of
from ..status import Status
from .attempt import FRESH_TRIES, LEFT_ALONE, Attempt, Outcome
from .connections import own_statements, own_transaction
from .known_steps import unknown_step
from .patience import make_move, pause, until_answered
from .processes import here

logger: logging.Logger = logging.getLogger("flask_sequence")

STAND_IN_SECONDS = 600.0
"""For how long a process that is no worker is taken to be alive once it performs a run."""


class Message(t.NamedTuple):
    """What came with a nudge that a message brought."""

    time_limit: float | None = None
    soft_time_limit: float | None = None
    """The time limits under which it is performed, in seconds."""
    label: str = ""
    """The sequence and the step that it names in logs, perhaps; a hint."""
    redirect: int = 0
    """The sign by which a nudge is known that was sent again, as ``redirect_sign`` makes it."""
    mark: object = None
    """The mark of its run, as ``mark_of`` makes it; None: it has none."""

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The hard and the soft time limit."""
        return self.time_limit, self.soft_time_limit


def redirect_sign(uid: uuid.UUID, version: int) -> int:
    """Return the sign of a nudge that goes where its step is performed by now.

    Whoever may only write to the broker cannot make it: no message holds the ``uid`` of a run.

    :param uid: The run's.
    :param version: The version that the nudge names.
    """
    return uuid.uuid5(uid, str(version)).int % 2**31 or 1


def claim_run(
    runtime: Runtime,
    run_id: int,
    version: int,
    *,
    ignore_due: bool,
    message: Message | None,
    is_shutdown: t.Callable[[BaseException], bool],
) -> Attempt | Outcome:
    """Claim a run, if the nudge is not stale, the run is due, and its step is known here.

    :return: The attempt; or, where there is none, what came of the nudge.
    """
    for tries in itertools.count(1):
        sent = False
        try:
            with own_statements(runtime) as connection:
                expected = _expect(runtime, connection, message)
                sent = expected is not None
                claim = expected and _claim(runtime, connection, run_id, version, expected=expected)
                if not claim:
                    sent = False  # the answer was no
                    row = reads.look(connection, run_id)
                    if message is not None and message.mark is not None:
                        _tell_foreign(runtime, connection, row, run_id, message)
                    refused = _refuse(runtime, row, version, ignore_due)
                    if refused is None and message is not None:
                        refused = _redirect(runtime, connection, row, message)
                    if refused is not None:
                        return refused
                    sent = True
                    claim = _claim(runtime, connection, run_id, version, ignore_due=ignore_due)
            return _attempt_at(runtime, claim, is_shutdown) if claim else LEFT_ALONE
        except Exception as error:
            # It may have been made, although the answer has not come.
            claim = until_answered(lambda: _held(runtime, run_id, version + 1)) if sent else None
            if claim is not None:
                return _attempt_at(runtime, claim, is_shutdown)
            if not is_transient(error) and (sent or tries > 1):
                raise
            if tries == FRESH_TRIES or is_row_locked(error):
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
        told = unknown_step(runtime, row.sequence, row.step)
        logger.warning("Run %s cannot go on here. %s", row.id, told)
    if row.due_at is None or found is None:
        return LEFT_ALONE
    rest = (row.due_at - row.now).total_seconds()
    if ignore_due or rest <= 0:
        return None
    if not runtime.rides(rest):
        return LEFT_ALONE
    return Outcome(nudge=runtime.nudge(row, found[1].options, countdown=rest))


def _tell_foreign(
    runtime: Runtime, connection: sa.Connection, row: Row | None, run_id: int, message: Message
) -> None:
    """Tell once, for all processes of a worker, that a nudge of another database has come."""
    worker = runtime.worker
    if worker is None or worker.foreign_flag[0]:
        return
    if not _is_foreign(runtime, connection, row, run_id, message):
        return
    worker.foreign_flag[0] = 1
    if not worker.foreign_lock.acquire(block=False):
        return
    logger.warning(
        "A nudge has arrived for run %s at %s, which is not in this database: does another"
        " application, or another installation of this one, use the same queue of %s? They take"
        " each other's messages, and runs wait for the next sweep. Give each a Redis database (or"
        " RabbitMQ vhost) of its own in broker_url, or a queue of its own by SEQUENCE_QUEUE.",
        run_id,
        sanitise(message.label[:200]),
        shown_broker(runtime.celery),
    )


def _is_foreign(
    runtime: Runtime, connection: sa.Connection, row: Row | None, run_id: int, message: Message
) -> bool:
    if row is not None:
        return mark_of(row.uid) != message.mark
    if find_sequence(message.label.rpartition(".")[0]) is None:
        return True
    # It may have been deleted; but not soon, and not before those that came after it.
    return runtime.settings.retention_seconds != 0 and run_id > reads.newest_id(connection)


def _redirect(
    runtime: Runtime, connection: sa.Connection, row: Row, message: Message
) -> Outcome | None:
    """Send a nudge again that came by another way than its step has since a deploy.

    Once: a hook of the application may change the limits of that one, too.
    """
    found = _find(row.sequence, row.step)
    assert found is not None
    options, version = found[1].options, row.version + 1
    way = (runtime.queue_of(options, row.options), options.time_limit, options.soft_time_limit)
    if (row.queue, *message.limits) == way:
        return None
    if message.redirect == redirect_sign(row.uid, row.version):
        return None
    sign = redirect_sign(row.uid, version)
    nudge = runtime.nudge(row, options, version=version, redirect=sign)
    moved = moves.redirect(connection, row.id, row.version, queue=nudge.queue)
    return Outcome(nudge=nudge) if moved else LEFT_ALONE


def _expect(
    runtime: Runtime, connection: sa.Connection, message: Message | None
) -> dict[str, str] | None:
    """Tell where a run must stand to be claimed unseen, by its message; None: look at it first.

    Databases other than PostgreSQL would have a stale nudge wait for whoever writes the row.
    """
    if message is None:
        return None
    sequence, _, step = message.label.rpartition(".")
    found = _find(sequence, step)
    if found is None or connection.dialect.name != "postgresql":
        return None
    options = found[1].options
    if message.limits != (options.time_limit, options.soft_time_limit):
        return None
    return {"sequence": sequence, "step": step, "queue": runtime.queue_of(options, None)}


def _claim(
    runtime: Runtime, connection: sa.Connection, run_id: int, version: int, **conditions: t.Any
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
) -> Attempt | Outcome:
    found = _find(claim.sequence, claim.step)
    if found is None:  # it has been redefined since it was looked for
        error = f"{claim.sequence}.{claim.step} is not known here any longer"
        make_move(runtime, claim, moves.hand_back(claim, delay=0.0, error=error))
        return LEFT_ALONE
    sequence, step = found
    with contextlib.suppress(Exception):  # the step fails, not the claim, where it cannot be read
        # As the fence compares it: jsonb changes its form.
        claim = claim._replace(data=encode(decode_text(claim.data)))
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


def tell_trouble(runtime: Runtime, run_id: int, version: int, error: Exception) -> None:
    """Tell the log, and the run if it still waits, what has come of a nudge but no outcome.

    :param runtime: The application's runtime.
    :param run_id: The run.
    :param version: The version that the nudge names.
    :param error: What was raised.
    """
    logger.error("A nudge for run %s failed: %s", run_id, one_line(error), exc_info=error)
    text = Failure(one_line(error)).in_ascii().error
    try:
        with own_transaction(runtime) as connection:
            moves.note_trouble(connection, run_id, version, text)
    except Exception as late:
        logger.error(
            "The failure of a nudge could not be stored in run %s: %s", run_id, one_line(late)
        )


def stand_in(runtime: Runtime) -> None:
    """Count this process as a worker for a while, where it performs runs without being one."""
    if runtime.worker is not None:
        return
    mine = f"{os.getpid():x}-"
    if runtime.stand_in_id is None or not runtime.stand_in_id.startswith(mine):
        runtime.stand_in_id = (mine + uuid.uuid4().hex)[:32]
    with own_transaction(runtime) as connection:
        upkeep.renew_worker(
            connection,
            runtime.stand_in_id,
            host=runtime.host,
            pid=os.getpid(),
            lease=STAND_IN_SECONDS,
            queues=(),
            place=here(),
        )
