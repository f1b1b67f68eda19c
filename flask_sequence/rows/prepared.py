"""Statements that are sent as text, compiled once; and one that travels with its COMMIT."""

from __future__ import annotations

import sys
import typing as t
import weakref

import sqlalchemy as sa

NOT_HELD = "flask_sequence: not held"
"""What a statement says by which it fails where it must not be committed."""
_NO_NUMBER = "22P02"
"""PostgreSQL's code for a text that is no number, which it quotes."""
_CANCELED = "57014"
"""Its code for a statement that has exceeded ``statement_timeout``."""


def has_schema_map(connection: sa.Connection) -> bool:
    """Tell whether the application changes the schemas in the text of statements."""
    return bool(connection.get_execution_options().get("schema_translate_map"))


class Prepared:
    """A statement whose rows nobody reads, compiled once for each dialect: it is sent as text.

    :param statement: The statement.
    """

    def __init__(self, statement: sa.Insert | sa.Update | sa.Select[t.Any]) -> None:
        self._statement = statement
        self._compiled: weakref.WeakKeyDictionary[t.Any, _Compiled] = weakref.WeakKeyDictionary()

    def send(
        self, connection: sa.Connection, values: t.Mapping[str, t.Any]
    ) -> sa.CursorResult[t.Any]:
        """Send it.

        :param connection: Where to.
        :param values: The values of its parameters; others are left out.
        """
        if has_schema_map(connection):  # its text is not always the same
            names = self._compiled_for(connection.dialect).names
            return connection.execute(self._statement, {name: values[name] for name in names})
        text, parameters = self.for_driver(connection.dialect, values)
        return connection.exec_driver_sql(text, parameters)

    def for_driver(self, dialect: sa.Dialect, values: t.Mapping[str, t.Any]) -> tuple[str, t.Any]:
        """Return its text and its parameters as the driver takes them.

        :param dialect: For which database and driver.
        :param values: The values of its parameters.
        """
        compiled = self._compiled_for(dialect)
        return compiled.text, compiled.parameters(values)

    def _compiled_for(self, dialect: sa.Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect)
        if compiled is None:
            compiled = self._compiled[dialect] = _compile(self._statement, dialect)
        return compiled


class _Compiled(t.NamedTuple):
    text: str
    names: tuple[str, ...]
    """Its parameters; where they have no names, in their order."""
    processors: tuple[tuple[str, t.Callable[[t.Any], t.Any]], ...]
    positional: bool

    def parameters(self, values: t.Mapping[str, t.Any]) -> t.Any:
        sent = {name: values[name] for name in self.names}
        for name, process in self.processors:
            sent[name] = process(sent[name])
        return tuple(sent[name] for name in self.names) if self.positional else sent


def _compile(statement: t.Any, dialect: sa.Dialect) -> _Compiled:
    compiled: t.Any = statement.compile(dialect=dialect)
    processors = {
        name: parameter.type.dialect_impl(dialect).bind_processor(dialect)
        for parameter, name in compiled.bind_names.items()
    }
    return _Compiled(
        text=compiled.string,
        names=tuple(compiled.positiontup or processors),
        processors=tuple((name, process) for name, process in processors.items() if process),
        positional=bool(compiled.positional),
    )


def can_commit_along(connection: sa.Connection) -> bool:
    """Tell whether a statement and COMMIT can be sent in one message: by psycopg's pipeline.

    :param connection: In a transaction that is to be committed as it is, without two phases.
    """
    if connection.dialect.name != "postgresql" or connection.dialect.driver != "psycopg":
        return False
    driver: t.Any = connection.dialect.loaded_dbapi
    return driver.Pipeline.is_supported() and not has_schema_map(connection)


def commit_along(
    connection: sa.Connection, statement: Prepared, values: t.Mapping[str, t.Any]
) -> bool:
    """Send a statement and COMMIT in one message; where the statement fails, nothing is committed.

    What the driver raises comes as from SQLAlchemy's own COMMIT, without the statement and its
    parameters.

    :param connection: See ``can_commit_along``.
    :param statement: One that takes ``NOT_HELD`` for a number where it must not be committed.
    :param values: The values of its parameters.
    :return: Whether it was committed.
    :raises sqlalchemy.exc.DBAPIError: If the statement or the COMMIT failed in another way.
    """
    driver: t.Any = connection.connection.dbapi_connection
    text, parameters = statement.for_driver(connection.dialect, values)
    handled = sys.exc_info()[1]  # where a step commits in an except block
    try:
        with driver.pipeline(), driver.cursor() as cursor:
            cursor.execute(text, parameters)
            cursor.execute("COMMIT")
    except BaseException as error:
        if getattr(error, "sqlstate", None) == _NO_NUMBER and NOT_HELD in str(error):
            return False
        interrupt = _interrupt_in(error, driver, handled)
        if interrupt is not None:
            connection.invalidate()  # in the middle of a conversation
            raise interrupt from None
        # Whose statement it was matters where it has exceeded a limit of time.
        exceeded = getattr(error, "sqlstate", None) == _CANCELED
        connection._handle_dbapi_exception(error, text if exceeded else None, None, None, None)
    return True


def _interrupt_in(
    error: BaseException, driver: t.Any, handled: BaseException | None
) -> BaseException | None:
    """Return what a signal's handler, as that of a time limit, has raised meanwhile.

    The driver cannot leave its pipeline then, and its error about that hides it.
    """
    found: BaseException | None = error
    while found is not handled and isinstance(found, driver.Error):
        found = found.__context__
    return None if found is handled else found
