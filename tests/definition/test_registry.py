from __future__ import annotations

import dataclasses
import functools
import typing as t

import pytest
from celery import Celery

from flask_sequence import Sequence, errors
from flask_sequence.definition import registry as registry_module
from flask_sequence.definition.registry import (
    SequenceDefinition,
    Step,
    define_sequence,
    find_sequence,
    get_sequence,
    sequence_names,
)
from tests.support.definitions import CreateMessage, a_class, a_step, assign


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, SequenceDefinition]:
    registry: dict[str, SequenceDefinition] = {}
    monkeypatch.setattr(registry_module, "_registry", registry)
    return registry


class TestSequence:
    @pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 101, 5])
    def test_a_bad_name_is_refused(self, name: t.Any) -> None:
        with pytest.raises(errors.InvalidNameError, match="of sequence ContactForm "):
            define_sequence(a_class(), name, (CreateMessage,))

    def test_is_registered(self) -> None:
        cls = a_class()
        made = define_sequence(cls, "ContactForm", [CreateMessage, assign])
        assert find_sequence("ContactForm") is made
        assert get_sequence("ContactForm") is made
        assert (made.name, made.cls) == ("ContactForm", cls)
        assert made.step_names == ("CreateMessage", "assign")
        assert [found.cls for found in made.steps] == [CreateMessage, assign.step_class]

    def test_the_way_through(self) -> None:
        made = define_sequence(a_class(), "ContactForm", (CreateMessage, assign))
        assert made.first is made.get("CreateMessage")
        assert made.after("CreateMessage") is made.get("assign")
        assert made.after("assign") is None

    def test_an_unknown_step_is_not_the_end(self) -> None:
        made = define_sequence(a_class(), "ContactForm", (CreateMessage,))
        assert made.get("assign") is None
        with pytest.raises(KeyError):
            made.after("assign")

    def test_is_frozen(self) -> None:
        made = define_sequence(a_class(), "ContactForm", (CreateMessage,))
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.first.name = "other"  # type: ignore[misc]

    def test_one_thousand_steps(self) -> None:
        steps = [a_step(f"Step{number}") for number in range(1000)]
        made = define_sequence(a_class(), "ContactForm", steps)
        name, seen = made.first.name, 1
        while following := made.after(name):
            name, seen = following.name, seen + 1
        assert (name, seen) == ("Step999", 1000)

    @pytest.mark.parametrize("steps", [(), []])
    def test_needs_a_step(self, steps: object) -> None:
        with pytest.raises(errors.EmptySequenceError, match=r"^ContactForm\.steps is empty: list"):
            define_sequence(a_class(), "ContactForm", steps)

    @pytest.mark.parametrize(
        "steps", [CreateMessage, assign, "CreateMessage", {CreateMessage}, None]
    )
    def test_needs_a_tuple_or_list(self, steps: object) -> None:
        with pytest.raises(
            errors.InvalidStepError, match="must be a tuple or a list.*with its com"
        ):
            define_sequence(a_class(), "ContactForm", steps)

    def test_names_are_unique(self) -> None:
        other = a_step("Other", name="assign")
        with pytest.raises(
            errors.DuplicateStepError,
            match=r"ContactForm\.steps\[1\] and ContactForm\.steps\[2\] are both named 'assign'",
        ):
            define_sequence(a_class(), "ContactForm", (CreateMessage, assign, other))

    def test_an_error_registers_nothing(self, registry: dict[str, SequenceDefinition]) -> None:
        with pytest.raises(errors.DuplicateStepError):
            define_sequence(a_class(), "ContactForm", (assign, assign))
        assert registry == {}

    def test_an_option_that_was_set_later_is_checked(self) -> None:
        cls: t.Any = a_step()
        cls.queue = 5
        with pytest.raises(errors.InvalidOptionError, match="SendReceipt: queue takes"):
            define_sequence(a_class(), "ContactForm", (cls,))


def plain(data: object) -> None: ...


celery_task = Celery("shop", set_as_current=False).task(plain)


class TestItems:
    @pytest.mark.parametrize(
        ("item", "problem"),
        [
            (CreateMessage(), r"is an instance; list the class itself, CreateMessage without \(\)"),
            (Step[dict[str, str]], r"is a type; list the class itself, Step without \[\]"),
            (Sequence, "is an extension of Flask; a step is a class that inherits from Step"),
            (Sequence(), "is an extension of Flask; a step is a class that inherits from Step"),
            (
                "CreateMessage",
                "is the string 'CreateMessage'; list the step itself, without quotes",
            ),
            ((CreateMessage,), r"is a list of its own; .* by a \* before it"),
            (plain, "is the function plain, which is not a step yet; put @step over it"),
            (functools.partial(plain), r"is the function functools\.par.*put @step over it"),
            (celery_task, "is the Celery task .* from a function under @step"),
            (celery_task.s(), "is the Celery task"),
            (
                type("Order", (), {"step_names": ()}),
                r"is the sequence Order, .* Order\.start\(\.\.\.\)",
            ),
            (
                a_class("Mailer"),
                "is the class Mailer, which is not a step; let it inherit from Step",
            ),
            (None, "is None; a step is a class that inherits from Step, or a function"),
            (Step, r"is Step, which has no perform\(\): write `def perform\(self\)`"),
            (type("Base", (Step,), {}), r"is Base, which has no perform\(\)"),
        ],
    )
    def test_what_is_no_step(self, item: object, problem: str) -> None:
        with pytest.raises(errors.InvalidStepError, match=rf"^ContactForm\.steps\[1\] {problem}"):
            define_sequence(a_class(), "ContactForm", (assign, item))


class TestRegistry:
    def test_a_reload_replaces(self) -> None:
        define_sequence(a_class(), "ContactForm", (CreateMessage,))
        made = define_sequence(a_class(), "ContactForm", (assign,))
        assert get_sequence("ContactForm") is made

    def test_another_module_is_refused_by_name(self) -> None:
        first = define_sequence(a_class(), "ContactForm", (CreateMessage,))
        with pytest.raises(
            errors.DuplicateSequenceError,
            match=r"^blog\.forms\.ContactForm and shop\.sequences\.ContactForm are both named",
        ):
            define_sequence(a_class(module="blog.forms"), "ContactForm", (assign,))
        assert get_sequence("ContactForm") is first

    @pytest.mark.parametrize(
        ("first", "second"),
        [("A.Form", "B.Form"), ("Form", "test_b.<locals>.Form"), ("test_a.<locals>.Form", "Form")],
    )
    def test_another_class_of_the_module_is_refused(self, first: str, second: str) -> None:
        define_sequence(a_class(qualname=first), "Form", (CreateMessage,))
        with pytest.raises(errors.DuplicateSequenceError, match="rename one of them"):
            define_sequence(a_class(qualname=second), "Form", (CreateMessage,))

    def test_local_classes_of_one_module_replace_each_other(self) -> None:
        define_sequence(a_class(qualname="test_a.<locals>.Form"), "Form", (CreateMessage,))
        made = define_sequence(a_class(qualname="test_b.<locals>.Form"), "Form", (assign,))
        assert get_sequence("Form") is made

    def test_local_classes_of_two_modules_do_not(self) -> None:
        define_sequence(a_class(qualname="test.<locals>.Form"), "Form", (CreateMessage,))
        with pytest.raises(errors.DuplicateSequenceError):
            define_sequence(
                a_class(module="blog", qualname="test.<locals>.Form"), "Form", (CreateMessage,)
            )

    def test_an_unknown_name(self) -> None:
        for name in ("Order", "ContactForm"):
            define_sequence(a_class(name), name, (CreateMessage,))
        assert sequence_names() == ["ContactForm", "Order"]
        assert find_sequence("Contact") is None
        with pytest.raises(errors.UnknownSequenceError, match=r"'Contact'.*ContactForm, Order\)"):
            get_sequence("Contact")
