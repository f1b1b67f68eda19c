"""Publish once the outermost transaction is really committed; start by key; read-only rows."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import typing as t

import sqlalchemy as sa
from flask import current_app, has_app_context
from sqlalchemy.orm import Mapper, Session, SessionTransaction, object_session

from ..rows import reads
from ..rows.driver_errors import is_taken
from ..rows.listeners import meet
from ..rows.models import SequenceRun
from ..rows.readonly import note_begin, note_end, refuse_writes
from ..runtime import Nudge, Runtime, current_runtime
from .connections import connection_of
from .contexts import identity_of
from .waiting import LockWaits

MOST_NUDGES = 100
"""How many nudges one commit publishes at most; the keepers of workers send the rest."""


@dataclasses.dataclass
class _Written:
    """A run that was written by a session and not committed yet."""

    nudge: Nudge
    runtime: Runtime
    connection: sa.Connection
    transaction: SessionTransaction
    publish: bool


_WRITTEN = "flask_sequence_written"
_COMMITTED = "flask_sequence_committed"


def _written(session: Session) -> list[_Written]:
    return t.cast("list[_Written]", session.info.get(_WRITTEN, []))


def _note(session: Session, entry: _Written) -> None:
    session.info.setdefault(_WRITTEN, []).append(entry)


def _innermost(session: Session) -> SessionTransaction:
    transaction = session.get_nested_transaction() or session.get_transaction()
    assert transaction is not None
    return transaction


def publish_after_commit(session: Session, nudge: Nudge, *, publish: bool = True) -> None:
    """Publish a nudge when the transaction of a session has been committed, and only then.

    :param session: Where the run was written.
    :param nudge: What to publish.
    :param publish: False for a run whose time is far: the sweep publishes it then.
    """
    connection = connection_of(session)
    entry = _Written(nudge, current_runtime(), connection, _innermost(session), publish)
    _note(session, entry)


def room_to_publish(session: Session) -> int:
    """Count the nudges that the commit of a session may publish beside those of flushed runs."""
    published = (entry for entry in _written(session) if entry.publish)
    return MOST_NUDGES - sum(1 for _ in itertools.islice(published, MOST_NUDGES))


def uncommitted(session: Session) -> list[str]:
    """Name the runs that were started in a session and are neither committed nor rolled back."""
    pending = [run for run in session.new if isinstance(run, SequenceRun)]
    labels = [f"{run.sequence}.{run.step}" for run in pending]
    labels += [entry.nudge.label for entry in _written(session)]
    counted = collections.Counter(labels).items()
    return [label if count == 1 else f"{label} ({count} times)" for label, count in counted]


def is_uncommitted(session: Session, run: SequenceRun) -> bool:
    """Tell whether a run was started in a session and is not committed yet."""
    state = sa.inspect(run)
    if state.transient or state.pending:
        return True
    return any(entry.nudge.run_id == identity_of(run) for entry in _written(session))


def insert_unless_taken(waits: LockWaits, session: Session, run: SequenceRun) -> SequenceRun | None:
    """Give the active run with the key of a run, else insert that at once, under a savepoint.

    :param waits: How long to wait for another transaction with the same key.
    :param session: Where to add it; what is pending there is flushed first.
    :param run: The run.
    :return: The run that has the key; None: one that is not seen here has it.
    :raises BusyError: If that transaction has not ended by then.
    """

    def find_or_insert() -> SequenceRun:
        assert run.key is not None
        active = _find(session, waits.connection, run.sequence, run.key)
        if active is not None:
            return active
        waits.tighten()
        with waits.savepoint():
            session.add(run)
            session.flush()
        return run

    session.flush()
    try:
        return waits.act(find_or_insert)
    except sa.exc.IntegrityError as error:
        # Another constraint, or a row that a listener of the application added, is the caller's.
        if is_taken(error) and SequenceRun.__tablename__ in (error.statement or ""):
            return None
        raise


def find_active_afresh(
    connection: sa.Connection, session: Session, sequence: str, key: str
) -> SequenceRun | None:
    """Load the active run with a key into a session, past the session's snapshot.

    That may be older than the run: on MariaDB, at its stock isolation level.

    :param connection: What reads past it.
    """
    with Session(connection) as reader:
        run = _find(reader, connection, sequence, key)
        return None if run is None else session.merge(run, load=False)


def _find(
    session: Session, connection: sa.Connection, sequence: str, key: str
) -> SequenceRun | None:
    run_id = reads.find_active(connection, sequence, key)
    return None if run_id is None else session.get(SequenceRun, run_id)


@sa.event.listens_for(Session, "after_begin")
def _after_begin(
    session: Session, transaction: SessionTransaction, connection: sa.Connection
) -> None:
    # Before the application's first statement about a run, which may be anything.
    if has_app_context() and (runtime := current_app.extensions.get("sequence")):
        engine = runtime.db.engines.get(runtime.settings.bind_key)
        if engine is not None and connection.engine.pool is engine.engine.pool:
            meet(connection.engine)


@sa.event.listens_for(Session, "before_flush")
def _before_flush(session: Session, context: t.Any, instances: t.Any) -> None:
    refuse_writes(session, context, instances)
    started = [row for row in session.new if isinstance(row, SequenceRun)]
    if started:
        connection_of(session)  # which refuses one that commits by itself
        for run in started[room_to_publish(session) :]:
            run.published_at = t.cast(t.Any, sa.null())  # so that a keeper finds it at once


sa.event.listen(Session, "after_transaction_create", note_begin)
sa.event.listen(Session, "after_transaction_end", note_end)


@sa.event.listens_for(SequenceRun, "after_insert")
def _after_insert(mapper: Mapper[t.Any], connection: sa.Connection, run: SequenceRun) -> None:
    session = object_session(run)
    assert session is not None
    runtime, nudge, publish = run._start_nudge()
    _note(session, _Written(nudge, runtime, connection, _innermost(session), publish))


@sa.event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    # What is still noted of it was rolled back, or closed: it was not committed.
    if written := _written(session):
        ended = transaction.parent is None
        left = [entry for entry in written if not ended and entry.transaction is not transaction]
        _replace_written(session, left)
    if transaction.parent is None:
        _publish(session.info.pop(_COMMITTED, ()))


def _replace_written(session: Session, written: list[_Written]) -> None:
    session.info.pop(_WRITTEN, None)
    if written:
        session.info[_WRITTEN] = written


@sa.event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    written = _written(session)
    savepoint = session.get_nested_transaction()
    if savepoint is not None:
        for entry in written:
            if entry.transaction is savepoint:
                entry.transaction = _around(savepoint)
        return
    _replace_written(session, [])
    # Published when the session has given its connection back, and is ready for other work.
    session.info[_COMMITTED] = [
        entry
        for entry in written
        # Inside a transaction that the session does not own, nothing is committed yet.
        if entry.publish and not entry.connection.in_transaction()
    ]


def _publish(committed: t.Sequence[_Written]) -> None:
    runtimes = {id(entry.runtime): entry.runtime for entry in committed}
    for runtime in runtimes.values():
        nudges = [entry.nudge for entry in committed if entry.runtime is runtime]
        runtime.publish(runtime, nudges)


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    around = savepoint.parent
    while around is not None and around.parent is not None and not around.nested:
        around = around.parent  # one of a flush
    assert around is not None
    return around
