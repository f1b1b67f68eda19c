"""Mistakes that a hand makes, and the word of the cure that each message must have."""

from __future__ import annotations

import contextlib
import datetime
import enum
import functools
import io
import subprocess
import sys
import textwrap
import types
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa
from celery import chain
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
    SequenceRun,
    SetupError,
    Step,
    step,
)
from flask_sequence.definition.habits import AT_RUN, AT_SEQUENCE, AT_STEP, IN_STEP, STARTERS
from flask_sequence.definition.steps import RESERVED
from flask_sequence.engine.known_steps import unknown_step
from flask_sequence.errors import ConfigError
from flask_sequence.runtime import runtime_of
from flask_sequence.testing import drain
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


def in_step(act: t.Callable[[t.Any], t.Any]) -> t.Callable[[], t.Any]:
    """Do something in a step, by its ``self``."""

    def perform(self: t.Any) -> None:
        act(self)

    return lambda: a_step(perform=perform).call({"text": "x"})


def ask(owner: t.Any, name: str) -> t.Callable[[], t.Any]:
    return lambda: getattr(owner, name)


def ask_in_step(name: str) -> t.Callable[[], t.Any]:
    return in_step(lambda step: getattr(step, name))


def ask_bound(name: str) -> None:
    def odd(self: t.Any, data: t.Any) -> None:
        getattr(self, name)

    step(bind=True)(odd).call({})


def ask_run(name: str) -> t.Callable[[], t.Any]:
    return lambda: getattr(Form.start(), name)


def set_up(**given: t.Any) -> None:
    app = Flask("mistaken")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy().init_app(app)
    Sequence(app, **given)


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
    **{
        f"{name} on {whose}": Mistake(ask(owner, name), AttributeError, cure)
        for whose, owner, cure in (
            ("a sequence", Form, "MistakenForm.start(email=...)"),
            ("a step class", Receipt, "call start(...) on that; SendReceipt.call(data) runs it"),
            ("a function", function, "call start(...) on that; assign.call(data) runs it"),
        )
        for name in STARTERS
    },
    "create on a sequence": Mistake(
        ask(Form, "create"), AttributeError, "MistakenForm.start(email=...)"
    ),
    **{
        f"{name} on a sequence": Mistake(
            ask(Form, name), AttributeError, "filter_by(sequence=MistakenForm.name)"
        )
        for name in ("get", "objects", "query")
    },
    **{
        f"start on a {whose}": Mistake(ask(owner, "start"), AttributeError, "call start(...) on")
        for whose, owner in (("step class", Receipt), ("function", function))
    },
    "a chain of functions": Mistake(
        lambda: chain(function, function), DefinitionError, "list them in `steps` of a sequence"
    ),
    "a function | a function": Mistake(
        lambda: function | function, DefinitionError, "steps = (assign, ...)"
    ),
    "a class | a function": Mistake(
        lambda: Receipt | function, DefinitionError, "steps = (assign, ...)"
    ),
    "steps = a class | a class": Mistake(
        lambda: a_sequence(Receipt | a_step()), DefinitionError, "must be a tuple or a list"
    ),
    "a class | a class among steps": Mistake(
        lambda: a_sequence((Receipt | a_step(),)), DefinitionError, "list each step by itself"
    ),
    **{
        f"self.{name}": Mistake(ask_in_step(name), AttributeError, cure)
        for name, cure in {
            **dict.fromkeys(
                ("apply", "apply_async", "delay", "s", "si", "signature", "subtask"),
                "self.retry(countdown=60) runs it again later",
            ),
            "AsyncResult": "put a result into self.data",
            "MaxRetriesExceededError": "The option max_retries sets how many there are",
            "app": "flask.current_app",
            "backend": "put a result into self.data",
            "db": "db.session",
            "id": "self.run.id",
            "max_retries": "does not set this option: the default applies",
            "replace": "self.finish() ends the run here",
            "request": "The number of the attempt is self.attempt, and the run's id is self.run.id",
            "retries": "self.attempt",
            "session": "db.session",
            "task_id": "self.run.id",
            "update_state": "Write it into self.data",
        }.items()
    },
    "self.request of a function": Mistake(
        lambda: ask_bound("request"),
        AttributeError,
        "'odd' object has no attribute 'request'. The number",
    ),
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
    "a URL for Celery": Mistake(
        lambda: set_up(celery="redis://x"), SetupError, 'app.config["CELERY"] = {"broker_url":'
    ),
    "nothing of a Celery": Mistake(
        lambda: set_up(celery=""), SetupError, "takes a Celery application"
    ),
    "a URL for the database": Mistake(
        lambda: set_up(db="sqlite://"), SetupError, "write Sequence(app, db=db)"
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
    **{
        f"run.{name}": Mistake(ask_run(name), AttributeError, cure)
        for names, cure in {
            ("apply_async", "delay", "start"): "runs once the session is committed",
            ("get", "join", "result"): "Call run.wait(timeout)",
            ("failed", "ready", "state", "successful"): "Read run.status",
            ("abort", "delete", "revoke", "terminate"): "Call run.cancel(), and commit",
            ("forget",): "SEQUENCE_RETENTION",
            ("query",): "db.session.get(SequenceRun, run_id)",
            ("task_id",): "Read run.id",
            ("traceback",): "run.step_runs[-1].traceback",
        }.items()
        for name in names
    },
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
        ("MistakenForm", "send_receipt", "its steps are SendReceipt, assign. Was it renamed, "),
        ("MistakenForm", "send_receipt", "or was this worker not restarted since it was added?"),
        ("MistakenForm", "send_receipt", "@step(name='send_receipt')"),
        ("Elsewhere", "first", "SEQUENCE_IMPORTS"),
    ],
)
def test_what_is_not_known(sqlite_app: Flask, sequence: str, name: str, told: str) -> None:
    assert told in unknown_step(runtime_of(sqlite_app), sequence, name)


def printed(act: t.Callable[[], t.Any]) -> str:
    """Give what Python prints of an error, without the stack."""
    with pytest.raises(AttributeError) as raised:
        act()
    # Python 3.11 suggests names where it prints an error itself, and not in ``traceback``.
    with contextlib.redirect_stderr(io.StringIO()) as told:
        sys.__excepthook__(AttributeError, raised.value, None)
    return told.getvalue()


@pytest.mark.parametrize(
    "act",
    [
        lambda: Form.s(),
        ask(SequenceRun(), "get"),
        ask(SequenceRun, "state"),
        lambda: Receipt.s(),
        lambda: function.s(),
        ask_in_step("si"),
        ask_in_step("app"),
    ],
)
def test_python_suggests_nothing_beside_the_cure(act: t.Callable[[], t.Any]) -> None:
    line = printed(act)
    assert line.endswith(".\n")
    assert not line.endswith("..\n")
    assert "Did you mean" not in line


def test_python_still_suggests_what_there_is() -> None:
    line = printed(ask_in_step("idempotency_ky"))
    assert line.endswith("no attribute 'idempotency_ky'. Did you mean: 'idempotency_key'?\n")


def test_what_is_not_there_is_not_listed(sqlite_app: Flask) -> None:
    run = Form.start()
    assert not set(AT_RUN) & set(dir(run))
    assert {"status", "wait"} <= set(dir(run))
    seen: list[str] = []
    in_step(lambda step: seen.extend(dir(step)))()
    assert set(AT_STEP) & set(seen) == {"run"}


@pytest.mark.parametrize(
    ("base", "cures"), [(BaseSequence, AT_SEQUENCE), (Step, AT_STEP), (SequenceRun, AT_RUN)]
)
def test_what_is_not_there_takes_no_name_of_ours(
    base: type, cures: t.Mapping[str, str], sqlite_app: Flask
) -> None:
    assert [name for name in cures if hasattr(base, name)] == []
    assert not set(IN_STEP) & set(RESERVED)
    inspected = sa.inspect(SequenceRun)
    assert not set(AT_RUN) & {*inspected.attrs.keys(), *inspected.all_orm_descriptors.keys()}


def test_what_an_application_adds_is_there() -> None:
    class Mixin:
        def send(self) -> str:
            return "sent"

        @classmethod
        def create(cls) -> str:
            return cls.__name__

    class Mail(Step, Mixin):
        def perform(self) -> None:
            self.data["sent"] = self.send()
            self.data["session"] = t.cast("t.Any", self).session

        session = "mine"

    class Mailing(BaseSequence, Mixin):
        steps = (Mail,)

    assert Mail.call({}) == {"sent": "sent", "session": "mine"}
    assert t.cast("t.Any", Mailing).create() == "Mailing"
    with pytest.raises(AttributeError, match=r"'Mailing' has no attribute 'query'"):
        ask(Mailing, "query")()


def test_a_relationship_may_have_the_name_of_what_is_not_there() -> None:
    """In a process of its own: the mapping of runs is that of the process."""
    code = """
        import sqlalchemy as sa
        from flask_sequence import SequenceRun
        from flask_sequence.rows.models import Base

        class Invoice(Base):
            __tablename__ = "invoices"
            id = sa.orm.mapped_column(sa.Integer, primary_key=True)
            run_id = sa.orm.mapped_column(sa.ForeignKey("sequence_runs.id"))
            run = sa.orm.relationship("SequenceRun", backref="result")

        sa.orm.configure_mappers()
        run = SequenceRun()
        invoice = Invoice(run=run)
        assert run.result == [invoice]
        assert "result" in dir(run)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_an_attribute_for_a_key_of_the_data() -> None:
    for text, act in {
        "text": lambda step: step.data.text,
        "id": lambda step: step.data["o"].id,
    }.items():
        with pytest.raises(AttributeError) as raised:
            a_step(perform=lambda self, act=act: act(self)).call({"text": "x", "o": {"id": 1}})
        assert raised.value.__notes__ == [f'Data is made of dicts: write ["{text}"] for .{text}']
    with pytest.raises(AttributeError) as raised:
        in_step(lambda step: step.data.missing)()
    assert not hasattr(raised.value, "__notes__")


def test_a_step_that_returns_something(caplog: pytest.LogCaptureFixture) -> None:
    class Returns(Step):
        def perform(self) -> dict[str, str]:
            return {"token": "hush"}

    @step
    def returns(data: dict[str, t.Any]) -> int:
        return 1

    for _ in range(2):
        Returns.call({})
        returns.call({})
        Receipt.call({})
    assert caplog.messages == [
        "Returns returned a dict, which is not kept: write it into self.data",
        "returns returned an int, which is not kept: write it into data",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.parametrize("publish", [None, False])
def test_a_wait_of_a_test_that_drains_nothing(
    make_app: t.Callable[..., Flask], sqlite_url: str, publish: bool | None
) -> None:
    app = make_app(sqlite_url, SEQUENCE_PUBLISH=publish)
    with app.app_context():
        run, later = Form.start(), Form.set(countdown=60).start()
        db.session.commit()
        with pytest.raises(TimeoutError, match=r"call drain\(app\) from flask_sequence.testing"):
            run.wait(0.01)
        with pytest.raises(TimeoutError, match=r"call drain\(app, ignore_due=True\) from"):
            later.wait(0.01)
        app.testing = False
        with pytest.raises(TimeoutError, match="start one with 'flask sequence worker'"):
            run.wait(0.01)


def test_a_drain_without_a_commit(sqlite_app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    Form.start()
    assert drain(sqlite_app) == 0
    assert caplog.messages == [
        "Started and not committed: MistakenForm.SendReceipt. drain() leaves them alone: call"
        " db.session.commit() after start()."
    ]
    db.session.commit()
    assert drain(sqlite_app) == 2
    assert len(caplog.messages) == 1
