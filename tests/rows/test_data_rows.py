"""Data that went through real rows: what comes back is what went in, on every database."""

from __future__ import annotations

import datetime
import decimal
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, example, given, settings

from flask_sequence import BaseSequence, DataTooLargeError, SequenceRun, Status, step
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.starts import TwoSteps, record_published
from tests.support.strategies import datas, same

MakeApp = t.Callable[..., Flask]
MOST_BYTES = 4 * 1024 * 1024


@step
def write_again(data: dict[str, t.Any]) -> None:
    """Change the data and change them back, so that they are written by the fence too."""
    data["\\written"] = True


@step
def take_back(data: dict[str, t.Any]) -> None:
    """Undo it."""
    del data["\\written"]


class RoundTrip(BaseSequence):
    """Data through two steps."""

    steps = (write_again, take_back)


@step
def change_inside(data: dict[str, t.Any]) -> None:
    """Change data in each way that a step may."""
    data["a"]["b"] = 1
    data["list"].append({"c": []})
    data["list"][1]["c"].append(2)
    del data["gone"]
    data["replaced"] = {"new": data.pop("old")}


class Changes(BaseSequence):
    """Changes inside of the data."""

    steps = (change_inside,)


@step
def grow(data: dict[str, t.Any]) -> None:
    """Make data that are larger than what is allowed."""
    data["text"] = "x" * MOST_BYTES


class Grows(BaseSequence):
    """Data that grow too large."""

    steps = (grow,)


@pytest.fixture
def context(app: Flask) -> t.Iterator[Flask]:
    """``app``, inside an app context of it."""
    with app.app_context():
        record_published(app)
        yield app


def nested(levels: int) -> t.Any:
    value: t.Any = "innermost"
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


EXAMPLES: dict[str, t.Any] = {
    "emoji": "😀👩‍👩‍👧 é e\u0301 \u202e \\u0000 <b>'\"</b>",
    "integers": [0, -1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**70, 10**400],
    "floats": [0.1, 1e15, 1e16, 1e22, 1e23, 1e308, 5e-324, -0.0, 0.0, 1.0, 100.0],
    "kinds": [True, 1, 1.0, False, 0, None, "", {}, [], b"", b"\x00\xff"],
    "decimals": [decimal.Decimal(text) for text in ("1.10", "0E-7", "-0", "1E+30", "0.1")],
    "days": [datetime.date(1, 1, 1), datetime.time(1, 2, 3, 4), datetime.time.max],
    "times": [
        datetime.datetime(2026, 11, 23, 1, 2, 3, 456_789),
        datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC),
        datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, datetime.timezone.max),
    ],
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "a.b 'c' \"d\" 😀 $ %s :x ?": {"": {"\\": 1}},
    "__type__": {"__type__": "datetime", "__value__": "2026-11-23"},
    "nested": nested(29),
    "many": {f"key {number}": number for number in range(5_000)},
}


@given(data=datas)
@example(data=EXAMPLES)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_comes_back_as_it_went_in(context: Flask, data: dict[str, t.Any]) -> None:
    run = RoundTrip.set().start(**data)
    assert same(dict(run.data), data)
    db.session.commit()
    assert same(dict(run.data), data)
    assert drain(context) == 2
    db.session.rollback()
    assert run.status is Status.FINISHED
    assert same(dict(run.data), data)
    [many] = RoundTrip.start_many([data])
    row = db.session.get(SequenceRun, many)
    assert row is not None
    assert same(dict(row.data), data)
    db.session.rollback()


def test_changes_inside_are_kept(context: Flask) -> None:
    run = Changes.start(a={"b": 0}, list=[1, {"c": [1]}], gone=1, old=[1])
    db.session.commit()
    drain(context)
    db.session.rollback()
    assert run.data == {
        "a": {"b": 1},
        "list": [1, {"c": [1, 2]}, {"c": []}],
        "replaced": {"new": [1]},
    }


def test_a_megabyte(context: Flask) -> None:
    data = {"text": "é😀x" * 250_000, "list": list(range(50_000))}
    run = RoundTrip.set().start(**data)
    db.session.commit()
    assert drain(context) == 2
    db.session.rollback()
    assert dict(run.data) == data


def test_the_most_that_is_allowed(context: Flask) -> None:
    text = "x" * (MOST_BYTES - len('{"text":""}'))
    run = Changes.start(text=text)
    db.session.commit()
    assert run.data["text"] == text
    with pytest.raises(DataTooLargeError, match="SEQUENCE_MAX_DATA_BYTES"):
        Changes.start(text=text + "x")
    stored = sa.func.length(sa.cast(sa.literal_column("data"), sa.Text))
    size: t.Any = db.session.scalar(sa.select(stored).select_from(SequenceRun.__table__))
    assert MOST_BYTES <= size <= MOST_BYTES + 1  # PostgreSQL writes a space after the colon


def test_a_step_that_makes_too_much_fails_the_run(context: Flask) -> None:
    run = Grows.start(kept=1)
    db.session.commit()
    assert drain(context) == 1
    db.session.rollback()
    assert run.status is Status.FAILED
    assert "SEQUENCE_MAX_DATA_BYTES" in str(run.error)
    assert run.data == {"kept": 1}


@pytest.mark.parametrize("charset", ["utf8", "latin1", "utf8mb4"])
@pytest.mark.parametrize("mode", ["", "STRICT_ALL_TABLES"])
def test_whatever_the_character_set_of_the_connection(
    make_app: t.Callable[..., Flask], mariadb_url: str, charset: str, mode: str
) -> None:
    options = {"connect_args": {"sql_mode": mode}}
    app = make_app(f"{mariadb_url}?charset={charset}", SQLALCHEMY_ENGINE_OPTIONS=options)
    data = {"note": "x", "é": "žluť 🎉", "plain": ["\\u00e9", "\x7f", {"深": "\ud7ff\ue000"}]}
    with app.app_context():
        record_published(app)
        run = TwoSteps.start(**data)
        db.session.commit()
        assert run.data == data
        (many,) = TwoSteps.start_many([data])
        db.session.commit()
        assert db.session.get_one(SequenceRun, many).data == data
        assert drain(app) == 4
        db.session.rollback()  # it has read, and would not see more
        db.session.refresh(run)
        assert (run.data, run.status) == (data, Status.FINISHED)
