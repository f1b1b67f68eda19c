"""A Celery application that somebody else made, and that the extension was not given."""

from __future__ import annotations

import threading
import typing as t
from pathlib import Path

import pytest
from celery import Celery
from flask import Flask

from flask_sequence import SetupError, celery_app
from flask_sequence.runtime import TASK
from flask_sequence.testing import drain
from flask_sequence.worker.task import runtime_of_worker
from tests.support.application import db
from tests.support.starts import TwoSteps
from tests.support.workers import Worker, write_module

MakeApp = t.Callable[..., Flask]

CURE = r"""the Celery application 'shop'.*Sequence\(app, celery=celery\)"""


@pytest.fixture
def foreign() -> t.Iterator[Celery]:
    """The Celery application of a module of the application's own."""
    celery = Celery("shop", broker="memory://")
    yield celery
    celery.close()


def start(app: Flask) -> None:
    with app.app_context():
        TwoSteps.start()
        db.session.commit()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"SEQUENCE_QUEUE": "mine"},
        {"CELERY": {"broker_url": "memory://"}},
        {"CELERY_BROKER_URL": "memory://"},
    ],
)
def test_a_start_is_refused(
    make_app: MakeApp, sqlite_url: str, foreign: Celery, config: dict[str, t.Any]
) -> None:
    app = make_app(sqlite_url, **config)
    with app.app_context():
        for first in (TwoSteps.start, lambda: TwoSteps.start_many([{}]), lambda: celery_app(app)):
            with pytest.raises(SetupError, match=CURE):
                first()
    assert not Path(app.instance_path).exists()


def test_also_in_a_thread_in_which_it_is_not_the_current_one(
    make_app: MakeApp, sqlite_url: str, foreign: Celery
) -> None:
    app, errors = make_app(sqlite_url), []

    def request() -> None:
        try:
            start(app)
        except SetupError as error:
            errors.append(error)

    thread = threading.Thread(target=request)
    thread.start()
    thread.join()
    assert len(errors) == 1


@pytest.mark.parametrize("how", ["given", "extensions"])
def test_each_cure_of_the_message_helps(
    make_app: MakeApp, sqlite_url: str, foreign: Celery, how: str
) -> None:
    app = make_app(sqlite_url, foreign if how == "given" else None)
    if how == "extensions":
        app.extensions["celery"] = foreign
    start(app)
    assert celery_app(app) is foreign
    assert drain(app) == 2


def test_the_cure_for_one_that_only_sends_to_another_service_helps(
    make_app: MakeApp, sqlite_url: str, foreign: Celery
) -> None:
    app = make_app(sqlite_url)
    with pytest.raises(SetupError, match=r"another service, create .*set_as_current=False\)"):
        start(app)
    foreign.close()
    Celery("shop", broker="memory://", set_as_current=False)
    start(app)
    assert drain(app) == 2


def test_the_one_of_another_application_is_left_alone(
    make_app: MakeApp, sqlite_url: str, foreign: Celery
) -> None:
    theirs, mine = make_app(sqlite_url, foreign), make_app(sqlite_url)
    start(theirs)
    start(mine)
    assert celery_app(mine) is not foreign


def test_one_that_is_nobodys_current_one_is_left_alone(make_app: MakeApp, sqlite_url: str) -> None:
    other = Celery("aside", set_as_current=False)
    app = make_app(sqlite_url)
    start(app)
    assert celery_app(app) is not other


def test_a_worker_of_another_celery_is_left_alone_where_each_was_given_its_own(
    make_app: MakeApp, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(sqlite_url, Celery("given", set_as_current=False, broker="memory://"))
    monkeypatch.setattr(
        "flask_sequence.worker.task.known_runtimes", lambda: [app.extensions["sequence"]]
    )
    assert runtime_of_worker(Celery("aside", set_as_current=False)) is None


def test_a_nudge_that_came_to_it_names_the_cure(
    foreign: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    foreign.tasks[TASK](format=1, id=1, version=0)
    (record,) = caplog.records
    assert "'shop', which no Sequence extension knows" in record.getMessage()
    assert "Sequence(app, celery=celery)" in record.getMessage()


MODULE = """
    from celery import Celery
    from tests.support.application import create_app

    def create():
        return create_app("sqlite:///{database}", instance_path="{folder}/instance")

    {before}
    celery_app = Celery("shop", broker="redis://127.0.0.1:1/0")
    app = create()
"""


@pytest.mark.parametrize(
    ("celery", "before"),
    [(False, ""), (True, ""), (True, "import flask_sequence; flask_sequence.celery_app(create())")],
)
def test_a_worker_ends_with_the_sentence(tmp_path: Path, celery: bool, before: str) -> None:
    database = tmp_path / "app.sqlite"
    source = MODULE.format(database=database, folder=tmp_path, before=before)
    with Worker(tmp_path, write_module(tmp_path, source), celery=celery).launch() as worker:
        assert worker.wait(30) == 1
        assert "Celery application 'shop', which was not given" in worker.log
        assert "Traceback" not in worker.log
