"""What a sequence class offers: it hands over to ``control``, with what was chosen for it."""

from __future__ import annotations

import inspect
import typing as t

import pytest
from flask import Flask

import flask_sequence
from flask_sequence import BaseSequence, EmptySequenceError, SequenceRun, UnknownOptionError
from flask_sequence.definition.options import CELERY_OPTIONS, OPTIONS
from flask_sequence.definition.registry import find_sequence
from flask_sequence.sequence import CHOICES, PreparedSequence
from tests.support.application import db
from tests.support.starts import First, Second, TwoSteps

MakeApp = t.Callable[..., Flask]


class Renamed(BaseSequence):
    name = "renamed"
    steps = [First]


class Shared(BaseSequence):
    """Without steps: what others share."""

    @classmethod
    def for_joel(cls) -> SequenceRun:
        return cls.start(name="Joel")


class ForJoel(Shared):
    steps = (Second,)


def test_names() -> None:
    assert (TwoSteps.name, Renamed.name, Shared.name) == ("TwoSteps", "renamed", "Shared")
    assert TwoSteps.step_names == ("First", "Second")
    assert Renamed.step_names == ("First",)
    assert Shared.step_names == BaseSequence.step_names == ()


def test_calling_the_class_starts_a_run(sqlite_app: Flask) -> None:
    run: t.Any = TwoSteps(name="Joel")
    assert type(run) is SequenceRun
    assert run in db.session
    assert run.data == {"name": "Joel"}


def test_a_name_of_ones_own_is_stored(sqlite_app: Flask) -> None:
    assert Renamed.start().sequence == "renamed"


def test_what_a_base_shares(sqlite_app: Flask) -> None:
    run = ForJoel.for_joel()
    assert (run.sequence, run.step, run.data) == ("ForJoel", "Second", {"name": "Joel"})
    with pytest.raises(EmptySequenceError, match="Shared has no steps"):
        Shared.for_joel()


@pytest.mark.parametrize("name", [*OPTIONS, *CHOICES, *sorted(CELERY_OPTIONS)])
def test_an_option_in_the_class_body_is_refused(name: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"^Optioned: '{name}' .*has no effect "):
        type("Optioned", (BaseSequence,), {"steps": (First,), name: 3})
    assert find_sequence("Optioned") is None
    with pytest.raises(UnknownOptionError, match=f"^Mixin: '{name}' "):
        type("Optioned", (type("Mixin", (), {name: 3}), BaseSequence), {})


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("key", r"write Optioned\.set\(key=\.\.\.\)\.start\(\.\.\.\)\."),
        ("queue", r"write Optioned\.set\(queue=\.\.\.\)\.start\(\.\.\.\), or queue on a step\."),
        ("max_retries", r"in the class body of the step, or by @step\(max_retries=\.\.\.\)\."),
        ("abstract", r"A sequence without `steps` is abstract by itself\."),
        ("acks_late", r"The run's row, not the message, "),
    ],
)
def test_where_the_option_belongs(name: str, cure: str) -> None:
    with pytest.raises(UnknownOptionError, match=cure):
        type("Optioned", (BaseSequence,), {name: True})


def test_attributes_and_methods_of_ones_own() -> None:
    class Own(BaseSequence):
        retries = 3
        template = "mail.html"

        @classmethod
        def key(cls, number: int) -> str:
            return f"own-{number}"

        def countdown(self) -> None: ...

    assert (Own.retries, Own.template, Own.key(3)) == (3, "mail.html", "own-3")
    with pytest.raises(UnknownOptionError, match="'on_failure' is Celery's"):
        type("Optioned", (BaseSequence,), {"on_failure": lambda self: None})


def test_options_are_for_one_start_only(sqlite_app: Flask) -> None:
    prepared = TwoSteps.set(queue="mail")
    assert prepared.start().queue == "mail"
    assert TwoSteps.start().queue != "mail"
    assert prepared.start(queue="data").data == {"queue": "data"}


def test_many_with_options(sqlite_app: Flask) -> None:
    run_ids = TwoSteps.set(queue="mail", priority=2).start_many([{"n": 1}, {"n": 2}])
    db.session.commit()
    rows = [db.session.get_one(SequenceRun, run_id) for run_id in run_ids]
    assert [(row.queue, row.options, row.data["n"]) for row in rows] == [
        ("mail", {"queue": "mail", "priority": 2}, 1),
        ("mail", {"queue": "mail", "priority": 2}, 2),
    ]


@pytest.mark.parametrize("owner", [BaseSequence, PreparedSequence, SequenceRun])
def test_everything_public_is_documented(owner: type) -> None:
    assert owner.__name__ in {*flask_sequence.__all__, "PreparedSequence"}
    for name in vars(owner):
        member = getattr(owner, name, None)  # what other libraries have is refused
        if not name.startswith("_") and inspect.isroutine(member):
            text = inspect.getdoc(member) or ""
            taken = set(inspect.signature(member).parameters) - {"self", "cls"}
            assert text, name
            assert all(f":param {parameter}:" in text for parameter in taken), name
