"""What is listened to on the engines of the runs, and on no other engine of the process."""

from __future__ import annotations

import threading
import typing as t
import weakref

import sqlalchemy as sa

from .dialects import begin_immediate
from .readonly import hide_parameters, name_missing_tables, refuse_orm_statement

_met: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
_meeting = threading.Lock()


def meet(engine: sa.Engine) -> None:
    """Listen to an engine that leads to the runs, from its first use on.

    :param engine: The engine; one with options of its own is listened to by the one behind it.
    """
    while (inner := getattr(engine, "_proxied", None)) is not None:
        engine = inner
    if engine in _met:
        return
    with _meeting:
        if engine not in _met:
            for name, listener in _LISTENERS:
                sa.event.listen(engine, name, listener)
            _met.add(engine)


def _begin_before_savepoint(connection: sa.Connection, name: str) -> None:
    # With the driver's stock settings a savepoint opens no transaction on SQLite: it would be
    # visible to others before the commit, and survive a rollback.
    begin_immediate(connection)


_LISTENERS: tuple[tuple[str, t.Callable[..., t.Any]], ...] = (
    ("savepoint", _begin_before_savepoint),
    ("before_execute", refuse_orm_statement),
    ("handle_error", hide_parameters),
    ("handle_error", name_missing_tables),
)
