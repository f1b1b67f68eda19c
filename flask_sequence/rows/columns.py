"""Column types that give the same value back on every database."""

from __future__ import annotations

import datetime
import json
import re
import typing as t
import uuid

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles

from ..definition.data import ReadOnlyData, UnreadableData, decode, encode
from ..errors import DataError
from ..status import Status, StepStatus

MYSQL = ("mysql", "mariadb")

DecoratorT = t.TypeVar("DecoratorT", bound="sa.types.TypeDecorator[t.Any]")


class UTCDateTime(sa.types.TypeDecorator[datetime.datetime]):
    """A time, aware, in UTC, with microseconds."""

    impl: t.Any = sa.DATETIME
    cache_ok: bool | None = True

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


class Uid(sa.types.TypeDecorator[uuid.UUID]):
    """A UUID; as 32 hexadecimal digits where the database has no type for it."""

    impl: t.Any = sa.CHAR(32)
    cache_ok: bool | None = True

    def process_bind_param(
        self, value: uuid.UUID | str | None, dialect: Dialect
    ) -> uuid.UUID | str | None:
        """Write it as the database keeps it."""
        if value is None:
            return None
        value = value if isinstance(value, uuid.UUID) else uuid.UUID(value)
        return value if dialect.name == "postgresql" else value.hex

    def process_result_value(
        self, value: uuid.UUID | str | None, dialect: Dialect
    ) -> uuid.UUID | None:
        """Return a UUID, whichever form the driver returns."""
        return uuid.UUID(value) if isinstance(value, str) else value


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


_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def _escape(text: str) -> str:
    """Write JSON in ASCII."""
    return (
        text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    )


class DataText(sa.types.TypeDecorator[t.Mapping[str, t.Any]]):
    """Data, as JSON. Read-only at the top; a string is taken for JSON that is encoded already.

    The engine's own ``json_serializer`` and ``json_deserializer`` are passed over: they belong to
    the application.
    """

    impl: t.Any = sa.JSON
    cache_ok: bool | None = True

    def bind_processor(self, dialect: Dialect) -> t.Callable[[t.Any], str | None]:
        """Encode by the one rule for data."""
        # The character set of a connection to MySQL is the application's choice.
        to_ascii = dialect.name in MYSQL

        def process(value: t.Any) -> str | None:
            text = value if value is None or isinstance(value, str) else encode(value)
            return _escape(text) if to_ascii and text is not None else text

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
            return None if value is None else _read(value)

        return process


def _read(text: str) -> ReadOnlyData:
    try:
        return ReadOnlyData(decode(json.loads(text)))
    except DataError as error:
        return UnreadableData(error)
    except ValueError as error:
        return UnreadableData(
            DataError("data", f"is stored as something other than JSON ({error})")
        )


class Word(sa.types.TypeDecorator[t.Any]):
    """A member of one of our enums, stored as its lower-case word.

    :param words: The enum.
    """

    impl: t.Any = sa.VARCHAR(16)
    cache_ok: bool | None = True

    def __init__(self, words: type[Status] | type[StepStatus]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: t.Any, dialect: Dialect) -> str | None:
        """Refuse what is no member."""
        return None if value is None else str(self.words(value).value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> t.Any:
        """Give the member; of a word that only a newer release knows, the word."""
        try:
            return None if value is None else self.words(value)
        except ValueError:
            return value


# The types of the columns: each names what every database stores. One that SQLAlchemy chose would
# be another one in another release of it.


def id_type() -> sa.types.TypeEngine[int]:
    """Make the type of a row's number; SQLite counts up only an INTEGER."""
    return sa.BIGINT().with_variant(sa.INTEGER(), "sqlite")


def name_type(length: int = 255) -> sa.types.TypeEngine[str]:
    """Make the type of a name: compared by its code points on every database.

    :param length: The most characters it holds.
    """
    return sa.VARCHAR(length).with_variant(_mysql_name(length), *MYSQL)


def _mysql_name(length: int) -> mysql.VARCHAR:
    return mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")


def text_type() -> sa.types.TypeEngine[str]:
    """Make the type of a long text: MySQL's own TEXT ends at 64 KiB."""
    return sa.TEXT().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), *MYSQL)


def time_type() -> UTCDateTime:
    """Make the type of a time, with its zone where there is one."""
    plain = _stored(UTCDateTime, sa.DATETIME())()
    with_zone = _stored(UTCDateTime, postgresql.TIMESTAMP(timezone=True))()
    with_micros = _stored(UTCDateTime, mysql.DATETIME(fsp=6))()
    return plain.with_variant(with_zone, "postgresql").with_variant(with_micros, *MYSQL)


def uid_type() -> Uid:
    """Make the type of a run's UUID."""
    own = _stored(Uid, postgresql.UUID())()
    digits = _stored(Uid, mysql.CHAR(32, charset="utf8mb4", collation="utf8mb4_bin"))()
    plain = _stored(Uid, sa.CHAR(32))()
    return plain.with_variant(own, "postgresql").with_variant(digits, *MYSQL)


def data_type() -> DataText:
    """Make the type of data."""
    binary = _stored(DataText, postgresql.JSONB(), "JSONB()")()
    text = _stored(DataText, mysql.JSON())()
    plain = _stored(DataText, sa.JSON())()
    return plain.with_variant(binary, "postgresql").with_variant(text, *MYSQL)


def word_type(words: type[Status] | type[StepStatus]) -> Word:
    """Make the type of a status.

    :param words: The enum.
    """
    plain = _stored(Word, sa.VARCHAR(16))(words)
    return plain.with_variant(_stored(Word, _mysql_name(16))(words), *MYSQL)


def _stored(
    kind: type[DecoratorT], stored: sa.types.TypeEngine[t.Any], written: str | None = None
) -> type[DecoratorT]:
    """Make a type around one of SQLAlchemy's, as which a migration writes it.

    Alembic goes by the module of its class and by its ``repr``, so that nothing of ours is in a
    migration, whichever way that is made.

    :param kind: The type of ours.
    :param stored: What the database stores.
    :param written: How a migration calls that, where its ``repr`` cannot be read again.
    """
    text = written or repr(stored)
    members = {
        "__module__": type(stored).__module__,
        "__repr__": lambda self: text,
        "impl": stored,
        "cache_ok": True,
    }
    return t.cast("type[DecoratorT]", type(kind.__name__, (kind,), members))
