"""Items in batches: one that fails keeps no other back."""

from __future__ import annotations

import contextlib
import typing as t
from types import SimpleNamespace

import pytest

from flask_sequence.worker.duties.batches import Batches


class RefusedError(Exception):
    pass


def make(rescue: t.Callable[[int, Exception], bool]) -> Batches[int]:
    post: t.Any = SimpleNamespace(
        has_time=True, statement_seconds=60.0, connect=lambda: contextlib.nullcontext(None)
    )
    return Batches(post, 10, rescue=rescue)


def refuse(connection: object, batch: t.Sequence[int]) -> None:
    raise RefusedError(str(batch))


def test_what_is_rescued_counts_as_done() -> None:
    batches = make(lambda item, error: item == 1)
    assert list(batches.each([1, 2], refuse)) == []
    assert [item for item, _ in batches.refused] == [2]
    batches.check()  # something was done


def test_where_nothing_is_done_the_last_error_is_raised() -> None:
    batches = make(lambda item, error: False)
    assert list(batches.each([1, 2], refuse)) == []
    with pytest.raises(RefusedError, match="2"):
        batches.check()


def test_a_rescue_that_fails_tells_its_own_error() -> None:
    def rescue(item: int, error: Exception) -> bool:
        raise ValueError(item)

    batches = make(rescue)
    assert list(batches.each([1], refuse)) == []
    with pytest.raises(ValueError, match="1"):
        batches.check()


def test_an_interrupt_of_a_rescue_is_not_taken_for_a_refusal() -> None:
    def rescue(item: int, error: Exception) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(make(rescue).each([1], refuse))
