"""Mistakes that a hand makes, and the word of the cure that each message must have."""

from __future__ import annotations

import datetime
import enum
import functools
import types
import typing as t
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_sequence import (
    BaseSequence,
    DataError,
    DefinitionError,
    MoveRefusedError,
    ReadOnlyError,
    RunNotFoundError,
    Sequence,
    SequenceError,
    SetupError,
    Step,
    step,
)
from flask_sequence.engine.known_steps import unknown_step
from flask_sequence.errors import ConfigError
from flask_sequence.runtime import runtime_of
from tests.support.application import db

define: t.Any = type
untyped_step: t.Any = step


class SendReceipt(Step):
    def perform(self) -> None:
        self.data["sent"] = True


@step
def assign(data: dict[str, t.Any]) -> None:
    data["assigned"] = True


class MistakenForm(BaseSequence):
    steps = (SendReceipt, assign)


Receipt: t.Any = SendReceipt
Form: t.Any = MistakenForm
function: t.Any = assign


class Colour(enum.Enum):
    RED = 1


class Mistake(t.NamedTuple):
    """What somebody writes, the error that it raises, and what that says."""

    act: t.Callable[[], t.Any]
    error: type[BaseException]
    told: str


def a_step(**body: t.Any) -> t.Any:
    return define("Odd", (Step,), {"perform": lambda self: None, **body})


def a_sequence(steps: t.Any) -> t.Any:
    return define("OddForm", (BaseSequence,), {"steps": steps})


def committed() -> t.Any:
    run = Form.start(email="joel@example.com")
    db.session.commit()
    return run


def start(**data: t.Any) -> t.Any:
    return Form.start(**data)


def write_data() -> None:
    committed().data["email"] = "x"


def delete_run() -> None:
    db.session.delete(committed())
    db.session.commit()


def yields(data: t.Any) -> t.Any:
    yield data


async def waits(self: t.Any) -> None: ...


DATA: dict[str, tuple[t.Any, str]] = {
    "a set": ({1, 2}, "store a sorted list"),
    "a tuple": ((1, 2), "store a list"),
    "an object": (object(), "store an id"),
    "an enum": (Colour.RED, "store its value"),
    "a timedelta": (datetime.timedelta(1), "store its total_seconds()"),
    "a lambda": (lambda: 1, "store what it returns, or its name"),
    "a function of a library": (len, "store what it returns, or its name"),
    "a generator": ((n for n in (1, 2)), "store a list of what it yields"),
    "a map": (map(str, (1, 2)), "store a list of what it yields"),
    "a range": (range(3), "store a list"),
    "keys of a dict": ({"a": 1}.keys(), "store a list"),
    "a mapping": (types.MappingProxyType({}), "store a dict"),
    "a path": (Path("a"), "store str() of it"),
    "an error": (ValueError("x"), "store str() of it"),
    "a class": (SendReceipt, "store its name"),
    "a complex number": (1j, "store an int, a float or a Decimal"),
    "a bytearray": (bytearray(b"a"), "store bytes"),
    "a number as a key": ({1: 2}, "write the key as str(...)"),
    "not a number": (float("nan"), "store None, or a string"),
}

WRITTEN: dict[str, Mistake] = {
    "a step called with data": Mistake(
        lambda: Receipt({"a": 1}), DefinitionError, "SendReceipt.call(data) runs it in place"
    ),
    "perform() called with data": Mistake(
        lambda: Receipt.perform({}), DefinitionError, "SendReceipt.call(data) runs it in place"
    ),
    "perform() called by hand": Mistake(
        lambda: Receipt().perform(), AttributeError, "SendReceipt.call(data) runs it in place"
    ),
    "delay() on a step": Mistake(
        lambda: Receipt.delay(1), AttributeError, "list it in `steps` of one"
    ),
    "apply_async() on a function": Mistake(
        lambda: function.apply_async(), AttributeError, "list it in `steps` of one"
    ),
    "delay() on a sequence": Mistake(
        lambda: Form.delay(), AttributeError, "MistakenForm.start(email=...)"
    ),
    "apply_async() on a sequence": Mistake(
        lambda: Form.apply_async(countdown=1), AttributeError, "MistakenForm.set(countdown=60)"
    ),
    "a signature of a sequence": Mistake(lambda: Form.s(), AttributeError, "MistakenForm.start("),
    "a misspelled option of a start": Mistake(
        lambda: Form.set(countdwn=3), DefinitionError, "Did you mean 'countdown'?"
    ),
    "an option of Celery in set()": Mistake(
        lambda: Form.set(expires=3), DefinitionError, "self.finish() or self.fail()"
    ),
    "a naive eta": Mistake(
        lambda: Form.set(eta=datetime.datetime(2030, 1, 1)),
        DefinitionError,
        "give an aware datetime",
    ),
    "a misspelled option of a step": Mistake(
        lambda: a_step(max_retry=3), DefinitionError, "Did you mean 'max_retries'?"
    ),
    "a wrong value of an option": Mistake(
        lambda: a_step(max_retries="3"), DefinitionError, "takes a whole number from 0"
    ),
    **{
        f"{name} on a step": Mistake(functools.partial(a_step, **{name: 1}), DefinitionError, cure)
        for name, cure in {
            "acks_late": "leave it out",
            "rate_limit": "a queue of its own",
            "routing_key": "by `queue`",
            "exchange": "by `queue`",
            "immediate": "by `queue`",
            "mandatory": "by `queue`",
            "delivery_mode": "leave it out",
            "pydantic": "check it in perform()",
        }.items()
    },
    "a soft limit of an async step": Mistake(
        lambda: a_step(perform=waits, soft_time_limit=5), DefinitionError, "asyncio.timeout()"
    ),
    "run() for perform()": Mistake(
        lambda: define("Odd", (Step,), {"run": lambda self: None}), DefinitionError, "perform()"
    ),
    "perform() with data": Mistake(
        lambda: a_step(perform=lambda self, data: None), DefinitionError, "def perform(self)"
    ),
    "a function without data": Mistake(
        lambda: untyped_step(lambda: None, name="odd"), DefinitionError, "def odd(data)"
    ),
    "a function that yields": Mistake(
        lambda: step(yields), DefinitionError, "keep the cursor in the data"
    ),
    "steps without a comma": Mistake(
        lambda: a_sequence(SendReceipt), DefinitionError, "with its comma"
    ),
    "a step as text": Mistake(
        lambda: a_sequence(("SendReceipt",)), DefinitionError, "without quotes"
    ),
    "an instance as a step": Mistake(
        lambda: a_sequence((SendReceipt(),)), DefinitionError, "without ()"
    ),
    "a plain function as a step": Mistake(
        lambda: a_sequence((committed,)), DefinitionError, "put @step over it"
    ),
    "the same step twice": Mistake(
        lambda: a_sequence((assign, assign)), DefinitionError, "rename one of them"
    ),
    "a sequence that inherits from the extension": Mistake(
        lambda: define("Odd", (Sequence,), {}), DefinitionError, "class Odd(BaseSequence)"
    ),
    "no application": Mistake(lambda: Form.start(), SetupError, "with app.app_context()"),
    "a misspelled setting": Mistake(
        lambda: made(SEQUENCE_IMPORT=("a",)), ConfigError, "did you mean SEQUENCE_IMPORTS?"
    ),
    "imports as a string": Mistake(
        lambda: made(SEQUENCE_IMPORTS="shop.sequences"), ConfigError, '("app.sequences",)'
    ),
    "the extension before the database": Mistake(
        lambda: Sequence(Flask("odd")), SetupError, "call db.init_app(app) before"
    ),
    "the extension twice": Mistake(lambda: Sequence(made()), SetupError, "import and use that one"),
}

STARTED: dict[str, Mistake] = {
    "data without names": Mistake(
        lambda: Form.start({"text": "x"}), DefinitionError, "MistakenForm.start(text=...)"
    ),
    "data without names, by a call": Mistake(
        lambda: Form({"text": "x"}), DefinitionError, "MistakenForm.start(**data)"
    ),
    "data without names, after set()": Mistake(
        lambda: Form.set(key="a").start({}), DefinitionError, "MistakenForm.start(**data)"
    ),
    **{
        f"{name} as data": Mistake(
            functools.partial(start, **{name: 1}),
            DefinitionError,
            f"write MistakenForm.set({name}=...).start(). To store it all the same, write"
            f" MistakenForm.set().start({name}=...)",
        )
        for name in ("key", "countdown", "eta", "queue", "priority")
    },
    "one dict for many": Mistake(
        lambda: Form.start_many({"a": 1}), DefinitionError, "MistakenForm.start(**data)"
    ),
    "one wrong dict among many": Mistake(
        lambda: Form.start_many([{}, {}, {"a": {1}}]), DataError, 'many[2]["a"]: is a set'
    ),
    "something else than a dict among many": Mistake(
        lambda: Form.start_many([{}, 5]), DataError, "many[1]: is an int; it must be a dict"
    ),
    "changed data": Mistake(write_data, ReadOnlyError, "start(**{**run.data, ...})"),
    "a run deleted by hand": Mistake(delete_run, ReadOnlyError, "run.cancel()"),
    "a retry of what is due": Mistake(lambda: committed().retry(), MoveRefusedError, "due already"),
    "a wait for what was never committed": Mistake(
        lambda: Form.start().wait(1), RunNotFoundError, "call db.session.commit()"
    ),
    "a wait without a worker": Mistake(
        lambda: committed().wait(0.01), TimeoutError, "start one with 'flask sequence worker'."
    ),
    **{
        f"{name} as data": Mistake(functools.partial(start, value=value), DataError, cure)
        for name, (value, cure) in DATA.items()
    },
}


def made(**config: t.Any) -> Flask:
    """Make an application that connects to nothing."""
    app = Flask("mistaken")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", **config)
    SQLAlchemy().init_app(app)
    Sequence(app)
    return app


def check(mistake: Mistake) -> None:
    with pytest.raises(mistake.error) as raised:
        mistake.act()
    told = str(raised.value)
    assert mistake.told in told
    assert "\n" not in told


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_wrongly(name: str) -> None:
    check(WRITTEN[name])


@pytest.mark.parametrize("name", STARTED)
def test_what_is_started_wrongly(sqlite_app: Flask, name: str) -> None:
    check(STARTED[name])


def test_each_error_is_one_of_ours_or_of_python() -> None:
    kinds = {mistake.error for mistake in (*WRITTEN.values(), *STARTED.values())}
    ours = {kind for kind in kinds if issubclass(kind, SequenceError)}
    assert kinds - ours == {AttributeError, TimeoutError}


@pytest.mark.parametrize(
    ("sequence", "name", "told"),
    [
        ("MistakenForm", "send_receipt", "its steps are SendReceipt, assign. Was it renamed?"),
        ("MistakenForm", "send_receipt", "@step(name='send_receipt')"),
        ("Elsewhere", "first", "SEQUENCE_IMPORTS"),
    ],
)
def test_what_is_not_known(sqlite_app: Flask, sequence: str, name: str, told: str) -> None:
    assert told in unknown_step(runtime_of(sqlite_app), sequence, name)
