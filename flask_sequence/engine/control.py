"""What a request, a shell or a page may do to a run: retry, cancel, wait for, look at it."""

from __future__ import annotations

import contextlib
import time
import typing as t

from sqlalchemy.orm import Session

from ..definition.registry import find_sequence
from ..errors import BusyError, MoveRefusedError, RunNotFoundError
from ..rows import moves, reads
from ..rows.claims import Row
from ..rows.models import SequenceRun
from ..runtime import Runtime, current_runtime
from ..status import Progress, Status, progress_of
from .commits import run_in_hand
from .connections import connection_of
from .consumers import no_consumer
from .contexts import expire, identity_of
from .known_steps import options_of
from .transaction import is_uncommitted, publish_after_commit, room_to_publish
from .waiting import LockWaits, brief_read, busy

LONGEST_POLL = 0.25
"""The most seconds between two looks of ``run.wait``."""


def retry(run: SequenceRun) -> None:
    """(failed, or waiting for another try) -> waiting, due now; see :meth:`SequenceRun.retry`."""
    runtime, session = _current_session()
    waits = LockWaits(session, busy(f"Run {id_of(run)}"))

    def move() -> tuple[Row | None, bool]:
        row = reads.look(waits.connection, id_of(run))
        if row is None or _no_retry(row) is not None:
            return row, False
        waits.tighten()
        act = moves.revive if row.status is Status.FAILED else moves.hasten
        is_published = room_to_publish(session) > 0
        return row, act(waits.connection, row.id, row.version, is_published=is_published)

    row, moved = waits.act(move)
    if row is None:
        raise RunNotFoundError(id_of(run))
    if problem := _no_retry(row):
        raise MoveRefusedError(row.id, problem)
    if not moved:
        raise MoveRefusedError(row.id, "was changed by another process just now; look at it again.")
    expire(run)
    options = options_of(row.sequence, row.step)
    if options is not None:
        publish_after_commit(session, runtime.nudge(row, options, version=row.version + 1))


def _no_retry(row: Row) -> str | None:
    if row.status is Status.FAILED:
        return None
    only = "only a run that has failed, or waits for another try, can be retried"
    if row.status is not Status.WAITING:
        return f"is {row.status}; {only}."
    if row.due_at is not None and row.due_at <= row.now:
        return f"is waiting at {row.step}, and due already; {only}."
    return None if row.attempt else f"is waiting for its first try at {row.step}; {only}."


def cancel(run: SequenceRun) -> None:
    """(any that is not final) -> cancelled; see :meth:`SequenceRun.cancel`."""
    _, session = _current_session()
    run_id, in_hand = id_of(run), run_in_hand()
    if in_hand is not None and run_id == in_hand:
        raise MoveRefusedError(
            run_id, "cannot be cancelled by its own step: call self.finish() or self.fail()."
        )
    waits = LockWaits(session, busy(f"Run {run_id}"))
    if not waits.act(lambda: moves.cancel(waits.connection, run_id)):
        row = waits.act(lambda: reads.look(waits.connection, run_id))
        if row is None:
            raise RunNotFoundError(run_id)
        if row.status is Status.FINISHED:
            raise MoveRefusedError(run_id, "is finished already; nothing is left to cancel.")
    expire(run)


def _current_session() -> tuple[Runtime, t.Any]:
    runtime = current_runtime()
    session = runtime.db.session()
    session.flush()
    return runtime, session


def id_of(run: SequenceRun) -> int:
    """Give the id of a run, also where its attributes are expired and its session is gone."""
    return t.cast(int, identity_of(run))


def wait(run: SequenceRun, timeout: float) -> Status:
    """Wait until a run is finished, failed or cancelled; see :meth:`SequenceRun.wait`."""
    runtime = current_runtime()
    run_id = id_of(run)
    if is_uncommitted(runtime.db.session(), run):
        raise RunNotFoundError(run_id)
    until, pause = time.monotonic() + timeout, 0.01
    where, trouble = "not seen", t.cast("BusyError | None", None)
    while True:
        left = max(0.0, until - time.monotonic())
        try:
            with brief_read(runtime, left) as connection:
                row = reads.look(connection, run_id)
        except BusyError as error:
            trouble = error
        else:
            if row is None:
                return Status.FINISHED
            if row.status in (Status.FINISHED, Status.FAILED, Status.CANCELLED):
                return t.cast(Status, row.status)
            where, trouble = f"{row.status} at {row.step}", None
        left = until - time.monotonic()
        if left <= 0:
            why = f": {trouble}" if trouble else f".{_why_waiting(runtime, run_id)}"
            raise TimeoutError(f"Run {run_id} is {where} after {timeout} s{why}") from trouble
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_POLL)


def _why_waiting(runtime: Runtime, run_id: int) -> str:
    if runtime.is_eager:
        return ""
    with contextlib.suppress(BusyError), brief_read(runtime, LONGEST_POLL) as connection:
        row = reads.look(connection, run_id)
        if row is not None and row.status is Status.WAITING:
            workers, default = reads.living_workers(connection), runtime.default_queue
            told = no_consumer(workers, row.queue, default)
            if told and runtime.app.testing and not runtime.publishes:
                is_later = row.due_at is not None and row.due_at > row.now
                call = "drain(app, ignore_due=True)" if is_later else "drain(app)"
                told = (
                    "Nothing is published under TESTING, and no worker is there to take it: call"
                    f" {call} from flask_sequence.testing, which runs what is due."
                )
            return f" {told}" if told else ""
    return ""


def progress(run: SequenceRun) -> Progress:
    """Tell how far a run has come; see :attr:`SequenceRun.progress`."""
    definition, run_id = find_sequence(run.sequence), identity_of(run)
    done: list[str] = []
    if run_id is not None:
        done = reads.finished_steps(connection_of(current_runtime().db.session()), run_id)
    names = definition.step_names if definition else ()
    return progress_of(names, run.step, run.status, done)


def find_run(run_id: int) -> SequenceRun:
    """Load a run into ``db.session``.

    :raises RunNotFoundError: If there is none with that id.
    """
    session = current_runtime().db.session()
    # Where runs are written: what the session reads may come from a replica.
    with Session(connection_of(session)) as reader:
        run = reader.get(SequenceRun, run_id)
        if run is None:
            raise RunNotFoundError(run_id)
        return session.merge(run, load=False)


def list_runs(
    *, status: Status | None = None, sequence: str | None = None, limit: int = 50
) -> list[Row]:
    """Give the newest runs, without their data, and ``now``, the database's clock.

    :param status: Only these.
    :param sequence: Only those of this sequence.
    :param limit: The most to give.
    """
    connection = connection_of(current_runtime().db.session())
    return reads.list_runs(connection, status=status, sequence=sequence, limit=limit)
