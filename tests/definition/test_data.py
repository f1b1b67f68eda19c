from __future__ import annotations

import enum
import json
import logging
import typing as t
import uuid
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flask_sequence.definition.data import (
    MAX_LEVELS,
    WARN_BYTES,
    ReadOnlyData,
    decode,
    decode_text,
    encode,
)
from flask_sequence.errors import DataError, DataTooLargeError, SequenceError
from tests.support.strategies import datas, same, scalars


class Colour(enum.StrEnum):
    RED = "red"


class Text(str):
    pass


class Mapped(dict[str, t.Any]):
    pass


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


class Nowhere(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, dt: datetime | None) -> str | None:
        return None


Pair = namedtuple("Pair", "a b")


def nested(levels: int, innermost: t.Any) -> dict[str, t.Any]:
    """``innermost`` inside this many dicts and lists, the outermost a dict."""
    for level in range(levels, 1, -1):
        innermost = [innermost] if level % 2 else {"k": innermost}
    return {"k": innermost}


def like_jsonb(tree: t.Any) -> t.Any:
    """What PostgreSQL's jsonb makes of parsed JSON: other key order, numbers by value."""
    if isinstance(tree, dict):
        ordered = sorted(tree, key=lambda key: (len(key.encode()), key), reverse=True)
        return {key: like_jsonb(tree[key]) for key in ordered}
    if isinstance(tree, list):
        return [like_jsonb(item) for item in tree]
    if isinstance(tree, float):
        return int(tree) if "e+" in repr(tree) else tree + 0.0
    return tree


def levels_of(tree: t.Any) -> int:
    if isinstance(tree, dict):
        return 1 + max(map(levels_of, tree.values()), default=0)
    return 1 + max(map(levels_of, tree), default=0) if isinstance(tree, list) else 0


@given(datas)
@example({"__type__": "int", "__value__": "0x1"})
@example({"a": {"__type__": {"__type__": 1}}, r"\__type__": [r"\__type__"]})
def test_data_comes_back_equal_in_value_and_type(data: dict[str, t.Any]) -> None:
    text = encode(data)
    assert same(decode_text(text), data)
    assert same(decode(json.loads(json.dumps(json.loads(text)))), data)
    assert same(decode(like_jsonb(json.loads(text))), data)


@given(datas)
def test_equal_data_gives_equal_text(data: dict[str, t.Any]) -> None:
    assert encode(decode_text(encode(data))) == encode(data)
    assert encode(dict(reversed(data.items()))) == encode(data)


@given(scalars)
@example(datetime(2000, 1, 1, tzinfo=timezone(timedelta(microseconds=1))))
@example(time(12, tzinfo=timezone(timedelta(microseconds=-1))))
def test_the_deepest_data_fits_into_the_31_levels_of_mariadb(value: t.Any) -> None:
    data = nested(MAX_LEVELS, value)
    text = encode(data)
    assert levels_of(json.loads(text)) <= MAX_LEVELS + 1
    assert same(decode_text(text), data)


@given(st.binary() | st.integers() | st.floats(allow_nan=False, allow_infinity=False))
@example(b"a\0b")
@example(1e16)
@example(-0.0)
@example(2**63)
def test_no_text_holds_what_a_database_changes_or_refuses(value: t.Any) -> None:
    def number(text: str) -> float:
        assert "e" not in text
        assert float(text).hex() != (-0.0).hex()
        return float(text)

    def integer(text: str) -> int:
        assert -(2**63) <= int(text) < 2**63
        return int(text)

    text = encode({"v": value})
    assert r"\u0000" not in text
    json.loads(text, parse_float=number, parse_int=integer)


def test_integers_have_any_size() -> None:
    data = {"v": -(10**5000)}  # More digits than Python writes as decimal text.
    back = decode_text(encode(data))
    assert (back == data) is True
    with pytest.raises(DataError, match="is under a key that is not a string"):
        encode({"v": {10**5000: 1}})


def test_bools_and_numbers_are_kept_apart() -> None:
    data = {"a": True, "b": 1, "c": 1.0, "d": Decimal(1)}
    assert same(decode_text(encode(data)), data)


def test_the_stored_form() -> None:
    """Rows of earlier versions are read by later ones: these texts do not change."""
    data = {
        "b": [1, 1.5, "ü", None, True],
        "big": 2**63,
        "bytes": b"\0\xff",
        "date": date(2026, 1, 2),
        "datetime": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "decimal": Decimal("1.10"),
        "float": 1e16,
        "least": -(2**63),
        "time": time(3, 4),
        "uuid": uuid.UUID(int=1),
        "__type__": 1,
        r"\__type__": 2,
    }
    assert json.loads(encode(data)) == {
        "b": [1, 1.5, "ü", None, True],
        "big": {"__type__": "int", "__value__": "0x8000000000000000"},
        "bytes": {"__type__": "base64", "__value__": "AP8="},
        "date": {"__type__": "date", "__value__": "2026-01-02"},
        "datetime": {"__type__": "datetime", "__value__": "2026-01-02T03:04:05.000006+00:00"},
        "decimal": {"__type__": "decimal", "__value__": "1.10"},
        "float": {"__type__": "float", "__value__": "1e+16"},
        "least": -9223372036854775808,
        "time": {"__type__": "time", "__value__": "03:04:00"},
        "uuid": {"__type__": "uuid", "__value__": "00000000-0000-0000-0000-000000000001"},
        r"\__type__": 1,
        r"\\__type__": 2,
    }
    assert encode({"b": "ü", "a": [1, 2]}) == '{"a":[1,2],"b":"ü"}'


@pytest.mark.parametrize("fold", [0, 1])
def test_a_datetime_in_a_zone_comes_back_with_its_offset(fold: int) -> None:
    moment = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
    back = decode_text(encode({"at": moment}))["at"]
    assert back.isoformat() == moment.isoformat()
    assert back.timestamp() == moment.timestamp()


def test_a_read_only_view_of_a_dict_is_taken() -> None:
    assert encode(ReadOnlyData({"a": 1})) == '{"a":1}'


def test_the_result_shares_nothing_with_the_input() -> None:
    shared: list[int] = [1]
    back = decode_text(encode({"a": shared, "b": shared}))
    back["a"].append(2)
    assert back["b"] == shared == [1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "is nan, which JSON does not have"),
        (float("inf"), "is inf,"),
        (float("-inf"), "is -inf,"),
        (Decimal("NaN"), "is NaN,"),
        (Decimal("sNaN"), "is sNaN,"),
        (Decimal("-Infinity"), "is -Infinity,"),
        ((1, 2), "is a tuple, which would not come back as one; store a list"),
        (Pair(1, 2), "is a Pair, .* store a list"),
        ({1}, "is a set, .* store a sorted list"),
        (frozenset(), "is a frozenset, .* store a sorted list"),
        (Colour.RED, "is a Colour, .* store its value"),
        (Text("a"), "is a Text, .* store a plain str"),
        (OrderedDict(a=1), "is an OrderedDict, .* store a plain dict"),
        (timedelta(1), r"is a timedelta, .* store its total_seconds\(\)"),
        (bytearray(b"a"), "is a bytearray, .* store"),
        (1j, "is a complex, "),
        (object(), "is an object, .* store an id, and load it in the step"),
        ((n for n in "ab"), "is a generator, "),
        (Unprintable(), "is an Unprintable, "),
        (int, "is a type, "),
        ("a\0b", "has a NUL character"),
        ("\ud800", "has half of a surrogate pair"),
        (time(1, tzinfo=ZoneInfo("Europe/Berlin")), "no offset without a date; store a datetime"),
        (datetime(2026, 1, 1, tzinfo=Nowhere()), "no offset"),
        ({1: "a"}, "is under a key that is not a str"),
        ({Text("a"): 1}, "is under a key that is not a str"),
        ({"a\0": 1}, "has a NUL character"),
        ({"a\udfff": 1}, "has half of a surrogate pair"),
    ],
)
def test_what_would_not_come_back_is_refused(value: t.Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        encode({"order": {"lines": [0, value]}})
    assert caught.value.path.startswith('data["order"]["lines"][1]')
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, SequenceError)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"a": 1, "b": {"c": 1}, "d": [[], [{}, {"größe": {1}}]]}, 'data["d"][1][1]["größe"]'),
        ({"a": {1: 2}}, 'data["a"][1]'),
        ({None: 2}, "data[None]"),
        ({'"]': object()}, r'data["\"]"]'),
        ({"\0": 1}, r'data["\u0000"]'),
        ({"\ud800": 1}, r'data["\ud800"]'),
        ({"k" * 1000: object()}, f'data["{"k" * 80}…"]'),
        ({("k" * 1000,): 1}, "data[('kkkkkkkkkkkk...kkkkkkkkkkkkk',)]"),
    ],
)
def test_the_path_leads_to_what_is_wrong(data: dict[str, t.Any], path: str) -> None:
    with pytest.raises(DataError) as caught:
        encode(data)
    assert caught.value.path == path


def test_a_key_that_cannot_be_shown_is_refused_all_the_same() -> None:
    with pytest.raises(DataError, match="is under a key that is not a str"):
        encode(t.cast(t.Any, {Unprintable(): 1}))


@pytest.mark.parametrize("data", [None, [1], "a", Mapped(a=1), OrderedDict(a=1)])
def test_data_itself_must_be_a_dict(data: t.Any) -> None:
    with pytest.raises(DataError, match=f"data: is an? {type(data).__name__}; it must be a dict"):
        encode(data)


@pytest.mark.parametrize("innermost", [{}, []])
def test_one_level_too_deep_is_refused(innermost: t.Any) -> None:
    assert same(decode_text(encode(data := nested(29, innermost))), data)
    with pytest.raises(DataError, match="is more than 30 levels deep") as caught:
        encode(nested(30, innermost))
    assert caught.value.path == "data" + '["k"]' * 2 + '[0]["k"]' * 14


def test_data_that_holds_itself_is_refused() -> None:
    data: dict[str, t.Any] = {"a": [1]}
    data["a"].append(data)
    with pytest.raises(DataError, match="holds itself") as caught:
        encode(data)
    assert caught.value.path == 'data["a"][1]'


def test_the_limit_counts_bytes() -> None:
    data = {"a": "ü"}
    assert encode(data, max_bytes=10) == '{"a":"ü"}'
    with pytest.raises(DataTooLargeError, match=r"takes 10 bytes .* SEQUENCE_MAX_DATA_BYTES") as e:
        encode(data, max_bytes=9)
    assert e.value.path == "data"


def test_large_data_is_warned_of_once_for_each_place(caplog: pytest.LogCaptureFixture) -> None:
    fill = "a" * (WARN_BYTES - len('{"a":""}'))
    places = [f"Large{uuid.uuid4().hex}.step" for _ in range(2)]  # it lasts as long as the process
    with caplog.at_level(logging.WARNING, "flask_sequence"):
        for place in places:
            encode({"a": fill}, place=place)
        encode({"a": f"{fill}b"})  # to be read, or shown
        assert not caplog.records
        for place in places * 3:
            encode({"a": f"{fill}b"}, place=place)
    assert [record.name for record in caplog.records] == ["flask_sequence"] * 2
    for place, record in zip(places, caplog.records, strict=True):
        assert f"data of {place} takes {WARN_BYTES + 1} bytes" in record.getMessage()


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"__type__": "later", "__value__": "hush"}},
        {"a": {"__type__": ["uuid"], "__value__": "hush"}},
        {"a": {"__type__": "uuid", "__value__": "hush"}},
        {"a": {"__type__": "uuid", "__value__": 1}},
        {"a": {"__type__": "decimal", "__value__": "hush"}},
        {"a": {"__type__": "base64", "__value__": "a"}},
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error(tree: t.Any) -> None:
    with pytest.raises(DataError, match="cannot be read; update flask-sequence") as caught:
        decode(tree)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("tree", [None, [], "a", {"__type__": "int", "__value__": "0x1"}])
def test_stored_data_that_is_no_object_is_an_error(tree: t.Any) -> None:
    with pytest.raises(DataError, match=r"is stored as .*; it must be an object"):
        decode(tree)


def test_half_a_mark_is_plain_data() -> None:
    """Rows may be mended by hand with SQL; only the whole mark has a meaning."""
    assert decode({"a": {"__type__": "int"}}) == {"a": {"__type__": "int"}}
