"""What can never work with a broker is told apart from an outage, with the cure."""

from __future__ import annotations

import importlib.util
import typing as t

import pytest
from celery import Celery
from flask import Flask
from kombu.exceptions import VersionMismatch

from flask_sequence.broker import embedded_config
from flask_sequence.broker.problems import setup_problem, shown_broker
from tests.support.application import db
from tests.support.starts import TwoSteps

if t.TYPE_CHECKING:
    from pathlib import Path

MakeApp = t.Callable[..., Flask]
WRONG = {
    "reddis://localhost": "did you mean redis://?",
    "carrier-pigeon://localhost": "write redis:// or amqp://.",
    "redis://localhost:port/0": "The broker's address is wrong",
    "mongodb://localhost": "needs a Python package: No module named 'pymongo'. Install it.",
}


@pytest.mark.parametrize("url", WRONG)
def test_what_can_never_work_is_told_with_its_cure(url: str) -> None:
    if url.startswith("mongodb") and importlib.util.find_spec("pymongo"):
        pytest.skip("pymongo is installed")
    problem = str(setup_problem(Celery("odd", broker=url, set_as_current=False)))
    assert WRONG[url] in problem
    assert "\n" not in problem


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    celery = Celery("odd", broker="rediss://localhost", set_as_current=False)
    assert setup_problem(celery) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "run pip install 'kombu[redis]'." in str(setup_problem(celery))


def test_a_package_that_is_too_old_is_named() -> None:
    celery = Celery("odd", broker="redis://a;redis://b", set_as_current=False)
    error = VersionMismatch("Redis transport requires redis-py 9.")
    told = "Redis transport requires redis-py 9: run pip install -U 'kombu[redis]'."
    assert str(setup_problem(celery, error)).startswith(told)


@pytest.mark.parametrize("error", [OSError("refused"), TimeoutError(), ValueError("Unexpected")])
def test_an_outage_is_no_such_problem(error: Exception) -> None:
    assert setup_problem(Celery("odd", broker="redis://x", set_as_current=False), error) is None


def test_where_a_broker_is_is_shown_without_its_password(tmp_path: Path) -> None:
    celery = Celery("odd", broker="redis://joel:hush@localhost:1/2", set_as_current=False)
    assert shown_broker(celery) == "redis://joel:**@localhost:1/2"
    celery = Celery("odd", set_as_current=False)
    celery.config_from_object(embedded_config(tmp_path))
    assert shown_broker(celery) == f"files in {tmp_path}/messages"


@pytest.mark.parametrize("url", ["reddis://localhost", "redis://localhost:port/0"])
def test_a_commit_logs_it(
    make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    app = make_app(sqlite_url, {"broker_url": url})
    with app.app_context():
        for _ in range(2):
            TwoSteps.start(note="")
            db.session.commit()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("Runs are saved, but workers are not told of them: The")
    assert WRONG[url] in record.message
