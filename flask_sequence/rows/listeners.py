"""What is listened to on the engines of the runs, and on no other engine of the process."""

from __future__ import annotations

import threading
import typing as t
import weakref

import sqlalchemy as sa

from ..errors import SetupError
from .dialects import begin_immediate
from .readonly import hide_parameters, name_missing_tables, refuse_orm_statement

_met: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
_meeting = threading.Lock()


def meet(engine: sa.Engine) -> None:
    """Listen to an engine that leads to the runs, from its first use on.

    :param engine: The engine; one with options of its own is listened to by the one behind it.
    :raises SetupError: If its driver is not one that keeps the promises.
    """
    while (inner := getattr(engine, "_proxied", None)) is not None:
        engine = inner
    _check_driver(engine)
    if engine in _met:
        return
    with _meeting:
        if engine not in _met:
            for name, listener in _LISTENERS:
                sa.event.listen(engine, name, listener)
            _met.add(engine)


_DRIVERS = {
    "sqlite": "sqlite://",
    "postgresql": "postgresql+psycopg://",
    "mysql": "mysql+pymysql://",
    "mariadb": "mariadb+pymysql://",
}
"""The databases, and the beginning of an address with a driver that is tested."""
_REFUSED = {"pg8000", "mysqlconnector", "mariadbconnector"}
"""The drivers whose errors and row counts are not known well enough."""


def _check_driver(engine: sa.Engine) -> None:
    dialect = engine.dialect
    if dialect.name not in _DRIVERS:
        known = "SQLite, PostgreSQL, MariaDB and MySQL"
        raise SetupError(
            f"The runs cannot be kept in {dialect.name}: flask-sequence supports {known}."
        )
    if dialect.is_async or dialect.driver in _REFUSED:
        raise SetupError(
            f"flask-sequence does not work with the driver of {engine.url.drivername}: start"
            f" the database's URL with {_DRIVERS[dialect.name]}, or give the runs a bind of their"
            " own by SEQUENCE_BIND_KEY."
        )


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
