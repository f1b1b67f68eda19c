from __future__ import annotations

import random
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_sequence.definition.retry import FROM_CONFIG, RetryPolicy, crash_delay

steady = RetryPolicy(jitter=False)


def delays(policy: RetryPolicy, count: int) -> list[float | None]:
    return [policy.delay(used, default_limit=None) for used in range(count)]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[float], None]:
    """Fix the random part: 0 takes the lower bound of every range, 1 the upper."""

    def fix(share: float) -> None:
        monkeypatch.setattr(random, "uniform", lambda low, high: low + share * (high - low))

    return fix


def test_the_delay_doubles_up_to_the_longest() -> None:
    assert delays(steady, 12) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


def test_the_first_and_the_longest_delay_can_be_chosen() -> None:
    assert delays(RetryPolicy(backoff=0.5, backoff_max=3, jitter=False), 4) == [0.5, 1, 2, 3]


def test_a_delay_is_cut_to_between_half_and_all_of_it(cut: t.Callable[[float], None]) -> None:
    cut(0)
    assert delays(RetryPolicy(), 4) == [0.5, 1, 2, 4]
    cut(1)
    assert delays(RetryPolicy(), 4) == [1, 2, 4, 8]


def test_no_backoff_is_no_delay() -> None:
    assert delays(RetryPolicy(backoff=None), 3) == [0, 0, 0]


def test_a_fixed_delay_knows_neither_backoff_nor_jitter(cut: t.Callable[[float], None]) -> None:
    cut(0)
    assert delays(RetryPolicy(default_delay=7), 3) == [7, 7, 7]
    assert delays(RetryPolicy(default_delay=0), 1) == [0]


@pytest.mark.parametrize(
    ("own", "default", "granted"),
    [(FROM_CONFIG, 2, 2), (FROM_CONFIG, 0, 0), (3, 1, 3), (0, 5, 0)],
)
def test_retries_are_used_up(own: int, default: int, granted: int) -> None:
    policy = RetryPolicy(max_retries=own)
    given_out = [policy.delay(used, default_limit=default) is not None for used in range(6)]
    assert given_out == [used < granted for used in range(6)]


@pytest.mark.parametrize(("own", "default"), [(None, 0), (FROM_CONFIG, None)])
def test_none_is_for_ever(own: int | None, default: int | None) -> None:
    assert RetryPolicy(max_retries=own).delay(10**6, default_limit=default) is not None


def test_a_countdown_takes_the_place_of_the_delay_and_counts() -> None:
    policy = RetryPolicy(max_retries=1, default_delay=9)
    assert policy.delay(0, default_limit=25, countdown=0.25) == 0.25
    assert policy.delay(0, default_limit=25, countdown=0) == 0
    assert policy.delay(0, default_limit=25, countdown=-1) == 0
    assert policy.delay(1, default_limit=25, countdown=0.25) is None


def test_exceptions_are_covered_by_class() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(TimeoutError,))
    assert policy.covers(ConnectionResetError())
    assert not policy.covers(TimeoutError())
    assert not policy.covers(ValueError())


def test_without_a_list_every_exception_is_covered_and_nothing_else() -> None:
    assert RetryPolicy().covers(ValueError())
    assert not RetryPolicy().covers(KeyboardInterrupt())


def test_a_crash_waits_longer_the_more_there_were(cut: t.Callable[[float], None]) -> None:
    cut(1)
    assert [crash_delay(crashes, most=10) for crashes in range(1, 11)] == [
        *(0, 1, 2, 4, 8, 16, 30, 30, 30),
        None,
    ]
    cut(0)
    assert [crash_delay(crashes, most=10) for crashes in (1, 2, 3, 9)] == [0, 0.8, 1.6, 24]


@given(
    st.builds(
        RetryPolicy,
        max_retries=st.none(),
        backoff=st.none() | st.floats(0, 1e6),
        backoff_max=st.floats(0, 1e6),
    ),
    st.integers(0, 10**9),
)
def test_every_delay_is_within_its_bounds(policy: RetryPolicy, count: int) -> None:
    delay = policy.delay(count, default_limit=None)
    assert delay is not None
    assert 0 <= delay <= policy.backoff_max
    crash = crash_delay(count, most=count + 1)
    assert crash is not None
    assert 0 <= crash <= 30
