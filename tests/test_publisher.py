"""The publisher, without a broker: when it gives a connection up, and what it says."""

from __future__ import annotations

import typing as t

import pytest

from flask_sequence.publisher import Publisher, _collect
from flask_sequence.runtime import Nudge, runtime_of

if t.TYPE_CHECKING:
    from flask import Flask

NUDGE = Nudge(run_id=1, version=0, label="S.a", queue="q")


@pytest.fixture
def publisher(make_app: t.Callable[..., Flask], sqlite_url: str) -> Publisher:
    return Publisher(runtime_of(make_app(sqlite_url)))


def cut(*_: object) -> t.NoReturn:
    raise OSError("cut")


def test_a_publisher_that_was_never_used_has_nothing_to_give_up(publisher: Publisher) -> None:
    publisher.close()
    publisher.disown()
    assert publisher._connection is None


def test_a_depth_that_cannot_be_read_gives_the_connection_up(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publisher.publish([NUDGE]) == 1
    assert publisher._connection is not None
    monkeypatch.setattr(publisher, "_depth", cut)
    with pytest.raises(OSError, match="cut"):
        publisher.depth(["q"])
    assert publisher._connection is None
    assert publisher.publish([NUDGE]) == 1


def test_a_broker_that_stays_away_is_named_once(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "_send_once", cut)
        assert [publisher.publish([NUDGE], rest=False) for _ in range(3)] == [0, 0, 0]
    assert caplog.text.count("The broker does not take messages (OSError: cut)") == 1
    assert publisher.publish([NUDGE]) == 0  # it rests
    assert publisher.publish([NUDGE], rest=False) == 1


def test_a_publisher_may_outlive_its_application(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "app", lambda: None)
    assert publisher.publish([NUDGE]) == 1


def test_a_connection_that_cannot_be_closed_is_left() -> None:
    class Connection:
        collect = staticmethod(lambda **_: cut())

    _collect(Connection())
