"""What a step's function must look like, and what it may give back."""

from __future__ import annotations

import inspect
import typing as t

import pytest

from flask_sequence import errors
from flask_sequence.definition.callables import check_result
from tests.support.definitions import a_step


@pytest.mark.parametrize(
    "perform",
    [
        lambda: None,
        lambda self, data: None,
        lambda self, *, data: None,
        staticmethod(lambda: None),
        classmethod(lambda cls: None),
    ],
)
def test_perform_takes_the_step_only(perform: object) -> None:
    with pytest.raises(
        errors.InvalidStepError,
        match=r"perform\(\) of step SendReceipt must be `def perform\(s",
    ):
        a_step(perform=perform)


def test_perform_is_a_function() -> None:
    with pytest.raises(errors.InvalidStepError, match=r"is not a function; write `def perform"):
        a_step(perform="send")


def test_perform_does_not_yield() -> None:
    def perform(self: t.Any) -> t.Iterator[int]:
        yield 1

    async def perform_async(self: t.Any) -> t.AsyncIterator[int]:
        yield 1

    for function in (perform, perform_async):
        with pytest.raises(errors.InvalidStepError, match=r"has a `yield` and would never run"):
            a_step(perform=function)


def test_perform_with_a_hidden_signature_is_believed() -> None:
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(type)
    assert a_step(perform=type).name == "SendReceipt"


def test_a_body_that_has_not_run() -> None:
    async def body() -> None: ...

    async def items() -> t.AsyncIterator[int]:
        yield 1

    def rows() -> t.Iterator[int]:
        yield 1

    for made in (body, items, rows):
        with pytest.raises(errors.InvalidStepError, match=r"whose body has not run"):
            a_step(perform=lambda self, made=made: made()).call({})
    check_result("SendReceipt", [1])
