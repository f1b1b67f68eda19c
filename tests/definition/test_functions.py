from __future__ import annotations

import functools
import inspect
import typing as t

import pytest

from flask_sequence import errors
from flask_sequence.definition.registry import FunctionStep, Step, step
from flask_sequence.definition.steps import check_step
from tests.support.definitions import CreateMessage, assign, prepared, untyped_assign, untyped_step


class TestFunctionStep:
    def test_stays_callable_as_written(self) -> None:
        data: dict[str, t.Any] = {}
        assert assign(data) == "assigned"
        assert data == {"assigned": True}
        assert untyped_assign.__name__ == "assign"
        assert assign.__doc__ == "Give the message to somebody."
        assert repr(assign) == "<step assign>"

    def test_the_class_looks_like_the_function(self) -> None:
        cls = assign.step_class
        assert issubclass(cls, Step)
        assert (cls.__name__, cls.__module__) == ("assign", "tests.support.definitions")
        assert (cls.__qualname__, cls.__doc__) == ("assign", assign.__doc__)

    def test_call(self) -> None:
        assert assign.call({"name": "Joel"}) == {"name": "Joel", "assigned": True}

    def test_with_options(self) -> None:
        @step(queue="mail", max_retries=3, name="send receipt")
        def send(data: dict[str, t.Any]) -> None: ...

        options = check_step(send.step_class)
        assert (send.name, send.step_class.name) == ("send receipt", "send receipt")
        assert (options.queue, options.retry.max_retries) == ("mail", 3)

    def test_without_options_in_the_brackets(self) -> None:
        made = step()(untyped_assign.__wrapped__)
        assert (made.name, made.call({})) == ("assign", {"assigned": True})

    def test_a_decorator_can_be_used_twice(self) -> None:
        on_mail = step(bind=True, queue="mail")

        def first(self: Step, data: dict[str, t.Any]) -> None: ...
        def second(self: Step, data: dict[str, t.Any]) -> None: ...

        assert [on_mail(first).name, on_mail(second).name] == ["first", "second"]
        assert on_mail(second).step_class.queue == "mail"

    def test_bound_to_the_step(self) -> None:
        @step(bind=True)
        def look(self: Step, data: dict[str, t.Any]) -> None:
            assert data is self.data
            data["attempt"] = self.attempt

        assert look.call({}) == {"attempt": 1}
        ready = prepared(look.step_class)
        look(ready, ready.data)
        assert ready.data == {"attempt": 3}

    def test_async(self) -> None:
        @step
        async def fetch(data: dict[str, t.Any]) -> None:
            data["fetched"] = True

        assert inspect.iscoroutinefunction(fetch.step_class.perform)
        assert fetch.call({}) == {"fetched": True}

    def test_a_lambda_needs_a_name(self) -> None:
        with pytest.raises(errors.InvalidStepError, match=r'has no name.*step\(name="assign"\)'):
            step(lambda data: None)
        assert step(name="assign")(lambda data: None).name == "assign"

    def test_a_partial_needs_a_name(self) -> None:
        double = functools.partial(lambda by, data: data.update(n=data["n"] * by), 2)
        with pytest.raises(errors.InvalidStepError, match="has no name"):
            step(double)
        assert step(name="double")(double).call({"n": 2}) == {"n": 4}

    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            (assign, "assign is a step already: write @step once"),
            (CreateMessage, "CreateMessage is a class: inherit from Step"),
            ("mail", r"given 'mail', which is not a function; options have names"),
        ],
    )
    def test_not_a_function(self, function: t.Any, problem: str) -> None:
        with pytest.raises(errors.InvalidStepError, match=problem):
            step(function)

    def test_wrong_arguments(self) -> None:
        def none() -> None: ...
        def two(self: object, data: object) -> None: ...
        def one(data: object) -> None: ...

        for function in (none, two):
            with pytest.raises(
                errors.InvalidStepError, match=rf"must be `def {function.__name__}\(data\)`, or"
            ):
                step(function)
        with pytest.raises(errors.InvalidStepError, match=r"must be `def one\(self, data\)`"):
            step(bind=True)(one)

    def test_a_generator(self) -> None:
        def rows(data: object) -> t.Iterator[int]:
            yield 1

        with pytest.raises(errors.InvalidStepError, match=r"@step rows has a `yield`"):
            step(rows)

    def test_bind_is_a_switch(self) -> None:
        with pytest.raises(errors.InvalidOptionError, match=r"@step assign: bind takes True or"):
            untyped_step(bind="yes", name="assign")(lambda data: None)

    def test_is_made_by_hand_too(self) -> None:
        def assign(data: dict[str, t.Any]) -> None: ...

        assert FunctionStep(assign).name == "assign"
