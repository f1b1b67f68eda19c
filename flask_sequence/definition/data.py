"""The one rule for data: what goes into a run comes back equal, in value and in type.

JSON's own types are stored as they are. What JSON lacks, or what a JSON column would change (jsonb
turns ``1e16`` into an integer), is stored as ``{"__type__": ..., "__value__": ...}``, the form of
:mod:`kombu.utils.json`, but always with a text as its value: kombu makes an object of a UUID, one
level more than MariaDB may take, and keeps in bytes the NUL that PostgreSQL refuses.
"""

from __future__ import annotations

import base64
import collections.abc
import enum
import functools
import json
import logging
import math
import numbers
import pathlib
import reprlib
import types
import typing as t
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

from ..errors import DataError, DataTooLargeError, ReadOnlyError

WARN_BYTES: t.Final = 256 * 1024
"""Data that takes more bytes than this as JSON is warned of in the log."""

MAX_LEVELS: t.Final = 30
"""How deep dicts and lists may be nested. MariaDB takes 31 levels; a marked value needs one."""

_TYPE, _VALUE = "__type__", "__value__"

_MARKED: dict[type, tuple[str, t.Callable[[t.Any], str], t.Callable[[str], t.Any]]] = {
    int: ("int", hex, lambda text: int(text, 16)),  # Python bounds the digits of decimal text.
    float: ("float", repr, float),
    Decimal: ("decimal", str, Decimal),
    datetime: ("datetime", datetime.isoformat, lambda text: _zoned(datetime, text)),
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, lambda text: _zoned(time, text)),
    UUID: ("uuid", str, UUID),
    bytes: ("base64", lambda value: base64.b64encode(value).decode(), base64.b64decode),
}
_READERS = {mark: read for mark, _, read in _MARKED.values()}

_CURES: dict[type, str] = {
    enum.Enum: "store its value",
    tuple: "store a list",
    set: "store a sorted list",
    frozenset: "store a sorted list",
    timedelta: "store its total_seconds()",
    **{kind: f"store a plain {kind.__name__}" for kind in (dict, list, str, *_MARKED)},
    bytearray: "store bytes",
    memoryview: "store bytes",
    numbers.Number: "store an int, a float or a Decimal",
    pathlib.PurePath: "store str() of it",
    BaseException: "store str() of it",
    type: "store its name",
    types.FunctionType: "store what it returns, or its name",
    types.BuiltinFunctionType: "store what it returns, or its name",
    types.MethodType: "store what it returns, or its name",
    functools.partial: "store what it returns, or its name",
    collections.abc.Mapping: "store a dict",
    collections.abc.Iterator: "store a list of what it yields",
    collections.abc.Collection: "store a list",
    object: "store an id, and load it in the step",
}

_KEY_FAULT = "is under a key that is not a string; write the key as str(...)"

_log = logging.getLogger("flask_sequence")
_warned: set[str] = set()
"""The places that large data was warned of."""


class ReadOnlyData(dict[str, t.Any]):
    """The data of a run, for who only reads it: a dict that cannot be changed.

    What is below the top is not guarded. A copy of it, deep or not, is a dict like others.

    .. versionadded:: 0.1
    """

    def _refuse(self, *args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        raise ReadOnlyError(
            "run.data is read-only: a step changes it, as self.data, while it runs. For a run"
            " with other data start one: start(**{**run.data, ...})."
        )

    if not t.TYPE_CHECKING:  # pragma: no branch
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[t.Any, ...]:
        """Return how a copy is made."""
        return dict, (dict(self),)


class UnreadableData(ReadOnlyData):
    """Stands in for data that cannot be read, so that its run can be; whoever reads it is told.

    :param error: Why it cannot be read.

    .. versionadded:: 0.1
    """

    def __init__(self, error: DataError) -> None:
        super().__init__()
        self.error: DataError = error

    def _tell(self, *args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        raise self.error

    if not t.TYPE_CHECKING:  # pragma: no branch
        __getitem__ = __iter__ = __len__ = __contains__ = __eq__ = __or__ = _tell
        get = keys = values = items = copy = __reduce__ = _tell
        __hash__ = None

    def __repr__(self) -> str:
        return f"<unreadable {self.error}>"


def encode(
    data: t.Mapping[str, t.Any],
    *,
    max_bytes: int | None = None,
    place: str = "",
    root: str = "data",
) -> str:
    """Check data and write it as JSON; the same data gives the same text.

    :param data: A dict, or a read-only view of one. The order of keys is not kept.
    :param max_bytes: The most bytes that the text may take in UTF-8; ``None`` is no limit.
    :param place: Where the data come from, a sequence or a step: large ones are warned of in the
        log, once for each place.
    :param root: What the data are called in an error.
    :return: The text for the JSON column.
    :raises DataError: If something in it would not come back as it is.
    :raises DataTooLargeError: If it takes more than ``max_bytes``.

    .. versionadded:: 0.1
    """
    top = dict(data) if isinstance(data, ReadOnlyData) else data
    if type(top) is not dict:
        raise DataError(root, f"is {article(type(top))}; it must be a dict")
    tree = _Writer(root).tree(top)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    _check_size(len(text.encode()), max_bytes, place, root)
    return text


def decode(tree: t.Any) -> dict[str, t.Any]:
    """Turn what a JSON column gives back into the data that was encoded.

    :param tree: The parsed JSON.
    :return: A new dict, equal to the one that was encoded.
    :raises DataError: If it holds something that :func:`encode` does not write.

    .. versionadded:: 0.1
    """
    data = _read(tree)
    if not isinstance(data, dict):
        raise DataError("data", f"is stored as a {type(data).__name__}; it must be an object")
    return data


def decode_text(text: str) -> dict[str, t.Any]:
    """Turn the text of :func:`encode` back into the data that was encoded.

    :param text: The JSON text.
    :return: A new dict, equal to the one that was encoded.
    :raises DataError: If it holds something that :func:`encode` does not write.

    .. versionadded:: 0.1
    """
    return decode(json.loads(text))


class _Writer:
    """Builds the JSON tree of data, and knows where it stands, for the path of an error."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path: list[t.Any] = []
        self.parents: list[t.Any] = []

    def tree(self, value: t.Any) -> t.Any:
        if type(value) in (dict, list):
            return self.container(value)
        if fault := _fault(value):
            self.refuse(fault)
        if _is_kept(value):
            return value
        mark, write, _ = _MARKED[type(value)]
        return {_TYPE: mark, _VALUE: write(value)}

    def container(self, value: t.Any) -> t.Any:
        if any(value is parent for parent in self.parents):
            self.refuse("holds itself; name the inner one by a key or an id instead")
        if len(self.parents) == MAX_LEVELS:
            self.refuse(f"is more than {MAX_LEVELS} levels deep; nest it less")
        self.parents.append(value)
        tree: t.Any
        if isinstance(value, dict):
            tree = {self.key(key): self.child(key, item) for key, item in value.items()}
        else:
            tree = [self.child(index, item) for index, item in enumerate(value)]
        self.parents.pop()
        return tree

    def child(self, place: t.Any, value: t.Any) -> t.Any:
        self.path.append(place)
        tree = self.tree(value)
        self.path.pop()
        return tree

    def key(self, key: t.Any) -> str:
        self.path.append(key)
        if fault := _fault(key) if type(key) is str else _KEY_FAULT:
            self.refuse(fault)
        self.path.pop()
        return f"\\{key}" if key.lstrip("\\") == _TYPE else t.cast(str, key)

    def refuse(self, fault: str) -> t.NoReturn:
        raise DataError(self.root + "".join(f"[{_shown(place)}]" for place in self.path), fault)


def article(kind: type) -> str:
    """Name a type with its article.

    :param kind: The type.
    """
    return f"{'an' if kind.__name__[0].lower() in 'aeiou' else 'a'} {kind.__name__}"


def _fault(value: t.Any) -> str | None:
    """Say why this value, which is no dict or list, cannot be stored; None: it can."""
    kind = type(value)
    if kind is str:
        return _text_fault(value)
    if kind not in _MARKED and kind not in (bool, type(None)):
        cure = next(cure for base, cure in _CURES.items() if isinstance(value, base))
        return f"is {article(kind)}, which would not come back as one; {cure}"
    if not (math.isfinite(value) if kind is float else kind is not Decimal or value.is_finite()):
        return f"is {value}, which JSON does not have; store None, or a string"
    if kind in (datetime, time) and value.tzinfo and value.utcoffset() is None:
        return "is in a zone that has no offset without a date; store a datetime, or drop the zone"
    return None


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character, which PostgreSQL refuses; remove it, or store bytes"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair; decode the string in another way, or store bytes"
    return None


def _is_kept(value: t.Any) -> bool:
    """Tell whether every JSON column gives this value back as it is."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    if type(value) is float:
        text = repr(value)
        return "e" not in text and text != "-0.0"
    return type(value) not in _MARKED


def _shown(place: t.Any) -> str:
    """Show a key as a program has it, on one line that can be printed and is not long."""
    if type(place) is not str:
        try:
            return reprlib.repr(place)
        except ValueError:  # an integer of more digits than Python writes
            return f"a very large {type(place).__name__}"
    text = json.dumps(place if len(place) <= 80 else f"{place[:80]}…", ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _read(tree: t.Any) -> t.Any:
    if isinstance(tree, list):
        return [_read(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {_TYPE, _VALUE}:
        return _read_marked(tree[_TYPE], tree[_VALUE])
    return {
        key[1:] if key.lstrip("\\") == _TYPE and key != _TYPE else key: _read(item)
        for key, item in tree.items()
    }


def _read_marked(mark: t.Any, value: t.Any) -> t.Any:
    try:
        return _READERS[mark](value)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        # Not the value itself: the text goes into logs, and it may be a secret.
        cure = "update flask-sequence if a later version wrote it; otherwise, correct the row"
        raise DataError(
            "data", f"holds a value marked as {reprlib.repr(mark)} that cannot be read; {cure}"
        ) from None


_CURE = "keep what is large in a table of your own, and its id in the data"


def _check_size(size: int, max_bytes: int | None, place: str, root: str) -> None:
    if max_bytes is not None and size > max_bytes:
        limit = f"more than the {max_bytes} of SEQUENCE_MAX_DATA_BYTES"
        raise DataTooLargeError(root, f"takes {size} bytes as JSON, {limit}; {_CURE}")
    if size > WARN_BYTES and place and place not in _warned:
        _warned.add(place)
        _log.warning(
            "The data of %s takes %d bytes as JSON, and is written at every step; %s.",
            place,
            size,
            _CURE,
        )


def _zoned(kind: type[datetime | time], text: str) -> datetime | time:
    value = kind.fromisoformat(text)
    if text[-16:-7] in ("+00:00:00", "-00:00:00"):  # Python takes less than a second for UTC.
        offset = timedelta(microseconds=int(text[-16] + text[-6:]))
        value = value.replace(tzinfo=timezone(offset))
    return value
