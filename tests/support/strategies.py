"""Hypothesis strategies for what users may write, and what it means to come back the same."""

from __future__ import annotations

import typing as t
from datetime import datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal

from hypothesis import strategies as st

zones: st.SearchStrategy[tzinfo | None] = st.none() | st.timedeltas(
    min_value=timedelta(hours=-23, minutes=-59), max_value=timedelta(hours=23, minutes=59)
).map(timezone)
"""No zone, or one with a fixed offset, down to the microsecond: what comes back has such a one."""

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))

keys = texts | st.sampled_from(["__type__", "__value__", r"\__type__", r"\\__type__", ""])

integers = st.integers() | st.sampled_from(
    [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, -(10**400)]
)

floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [-0.0, 0.0, 1.0, 1e15, 1e16, 1e22, 1e23, 1e-5, 5e-324, 1.7976931348623157e308]
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    texts,
    st.binary(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.dates(),
    st.datetimes(timezones=zones),
    st.times(timezones=zones),
)

marks = st.fixed_dictionaries({"__type__": texts | st.just("uuid"), "__value__": scalars})
"""Users' dicts that look like the mark of a stored value."""

values: st.SearchStrategy[t.Any] = st.recursive(
    scalars | marks,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)

datas: st.SearchStrategy[dict[str, t.Any]] = st.dictionaries(keys, values, max_size=5) | marks
"""Everything that ``start(**data)`` takes and that must come back from every database."""


def same(one: object, other: object) -> bool:
    """Tell whether two values are equal in value and type, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, datetime | time) and isinstance(other, datetime | time):
        return one == other and one.utcoffset() == other.utcoffset()
    return one == other
