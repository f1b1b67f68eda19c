"""Errors that say what to do, and hold no data: of read-only rows, of tables that are missing."""

from __future__ import annotations

import contextvars
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from ..errors import ReadOnlyError, SetupError
from ..failures import names_our_table
from .driver_errors import is_missing_table
from .models import MODELS, Base, SequenceRun


def refuse_writes(session: Session, context: t.Any, instances: t.Any) -> None:
    """Refuse a flush that would write one of our rows past the methods that are there for it.

    :param session: What is flushed.
    :param context: The flush.
    :raises ReadOnlyError: If one was added, changed or deleted.
    """
    session.info[_FLUSH] = weakref.ref(context)
    for row in session.new:
        if isinstance(row, MODELS) and not (isinstance(row, SequenceRun) and row._is_started):
            raise ReadOnlyError(
                f"A {type(row).__name__} cannot be added by hand: start a run with"
                " start(), for example ContactForm.start(name=...)."
            )
    for row in session.dirty:
        if isinstance(row, MODELS) and (changed := _changed_columns(row)):
            raise ReadOnlyError(
                f"{', '.join(changed)} of a {type(row).__name__} cannot be set: call"
                " run.retry() or run.cancel(). Undo the change with db.session.rollback()."
            )
    for row in session.deleted:
        if isinstance(row, MODELS):
            raise ReadOnlyError(
                f"A {type(row).__name__} cannot be deleted through the session: call run.cancel()"
                " and leave it to SEQUENCE_RETENTION. Undo it with db.session.rollback()."
            )


def refuse_orm_statement(
    connection: sa.Connection, statement: t.Any, *_: t.Any, **__: t.Any
) -> None:
    """Refuse a statement by which the ORM would write our rows past their methods.

    Those are ``update(SequenceRun)``, ``query.delete()`` and the like, and the bulk methods of a
    session. A statement on the table itself is let through: ours are such.

    :param statement: What is about to be sent.
    :raises ReadOnlyError: If it would.
    """
    if getattr(statement, "table", None) not in _TABLES or not statement.is_dml:
        return
    described = statement.entity_description
    if "entity" in described or _is_bulk.get():
        raise ReadOnlyError(
            f"{described['table'].name} is not written through the ORM: start runs with start() or"
            " start_many(), move them with run.retry() and run.cancel(), and leave their end to"
            " SEQUENCE_RETENTION."
        )


_TABLES = frozenset(model.__table__ for model in MODELS)

_FLUSH = "flask_sequence_flush"
"""Under which ``session.info`` names the flush that is about to begin."""
_is_bulk: contextvars.ContextVar[bool] = contextvars.ContextVar("is_bulk", default=False)
"""Whether a bulk method of a session is writing: no other event tells of it."""


def note_begin(session: Session, transaction: SessionTransaction) -> None:
    """Note when a session begins to write by itself: in a flush, or else by a bulk method."""
    if transaction.parent is not None and not transaction.nested:
        flush = session.info.pop(_FLUSH, None)
        _is_bulk.set(flush is None or flush() is None)


def note_end(session: Session, transaction: SessionTransaction) -> None:
    """Note when a session has written by itself."""
    _is_bulk.set(False)


def _changed_columns(row: Base) -> list[str]:
    state = sa.inspect(row)
    columns = state.mapper.column_attrs
    return [column.key for column in columns if state.attrs[column.key].history.has_changes()]


def hide_parameters(context: sa.engine.ExceptionContext) -> None:
    """Let an error of one of our statements not show, anywhere, what was sent with it.

    :param context: The error of a driver.
    """
    error = context.sqlalchemy_exception
    if error is not None and names_our_table(context.statement):
        error.hide_parameters = True


def name_missing_tables(context: sa.engine.ExceptionContext) -> SetupError | None:
    """Say how to make our tables, where a statement found them missing.

    :param context: The error of a driver.
    """
    reads_or_writes = (context.statement or "").startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
    # Of the text only the first line: PostgreSQL repeats the statement in the next one.
    problem, *_ = str(context.original_exception).splitlines() or [""]
    if (
        reads_or_writes
        and names_our_table(problem)
        and is_missing_table(context.original_exception)
    ):
        return SetupError(
            "The tables of flask-sequence are missing in this database: run"
            " 'flask sequence init' once, and 'flask db upgrade'."
        )
    return None
