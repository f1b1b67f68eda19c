"""Column types that give the same value back on every database."""

from __future__ import annotations

import datetime
import json
import types
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles

from ..definition.data import decode, encode
from ..status import Status, StepStatus

MYSQL = ("mysql", "mariadb")


class UTCDateTime(sa.types.TypeDecorator[datetime.datetime]):
    """A time, aware, in UTC, with microseconds."""

    impl: sa.types.TypeEngine[t.Any] | type[sa.types.TypeEngine[t.Any]] = sa.DateTime
    cache_ok: bool | None = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[t.Any]:
        """Choose the type that keeps microseconds, and the zone where there is one."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        if dialect.name in MYSQL:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """Turn an aware time into UTC."""
        if value is None:
            return None
        value = value.astimezone(datetime.UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """Make what the database gave aware."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=datetime.UTC)
        return value.astimezone(datetime.UTC)


class _Plain(sa.sql.functions.FunctionElement[t.Any]):
    """A JSON column as the database's text, which no hook of the driver has read."""

    inherit_cache = True
    type: sa.types.TypeEngine[t.Any] = sa.Text()


@compiles(_Plain)
def _plain(element: _Plain, compiler: t.Any, **kw: t.Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_Plain, "postgresql")
def _plain_postgresql(element: _Plain, compiler: t.Any, **kw: t.Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TEXT)"


def plain_text(column: sa.ColumnElement[t.Any]) -> sa.ColumnElement[str]:
    """Select a JSON column as text, which neither the driver nor `DataText` decodes.

    :param column: The column.
    """
    return _Plain(column)


class DataText(sa.types.TypeDecorator[t.Mapping[str, t.Any]]):
    """Data, as JSON. Read-only at the top; a string is taken for JSON that is encoded already.

    The engine's own ``json_serializer`` and ``json_deserializer`` are passed over: they belong to
    the application.
    """

    impl: sa.types.TypeEngine[t.Any] | type[sa.types.TypeEngine[t.Any]] = sa.JSON
    cache_ok: bool | None = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[t.Any]:
        """Choose jsonb on PostgreSQL."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB())
        return dialect.type_descriptor(sa.JSON())

    def bind_processor(self, dialect: Dialect) -> t.Callable[[t.Any], str | None]:
        """Encode by the one rule for data."""

        def process(value: t.Any) -> str | None:
            return value if value is None or isinstance(value, str) else encode(value)

        return process

    def column_expression(self, column: sa.ColumnElement[t.Any]) -> sa.ColumnElement[t.Any]:
        """Select the text."""
        plain = _Plain(column)
        plain.type = self
        return plain

    def process_literal_param(self, value: t.Any, dialect: Dialect) -> str:
        """Encode for SQL that is printed rather than sent."""
        return value if isinstance(value, str) else encode(value)

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> t.Callable[[t.Any], t.Mapping[str, t.Any] | None]:
        """Decode by the one rule for data."""

        def process(value: t.Any) -> t.Mapping[str, t.Any] | None:
            return None if value is None else types.MappingProxyType(decode(json.loads(value)))

        return process


class Word(sa.types.TypeDecorator[t.Any]):
    """A member of one of our enums, stored as its lower-case word.

    :param words: The enum.
    """

    impl: t.Any = sa.String(16)
    cache_ok: bool | None = True

    def __init__(self, words: type[Status] | type[StepStatus]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: t.Any, dialect: Dialect) -> str | None:
        """Refuse what is no member."""
        return None if value is None else str(self.words(value).value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> t.Any:
        """Give the member."""
        return None if value is None else self.words(value)


def name_type(length: int = 255) -> sa.String:
    """Make the type of a name: compared by its code points on every database.

    :param length: The most characters it holds.
    """
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(binary, *MYSQL)


def text_type() -> sa.Text:
    """Make the type of a long text: MySQL's own TEXT ends at 64 KiB."""
    return sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), *MYSQL)


def id_type() -> sa.BigInteger:
    """Make the type of a row's number; SQLite counts up only an INTEGER."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
