"""Requests of a test inside an app context that the test holds, with each release of Flask.

Until Flask 3.1 such a request shares the context, and so its session; from 3.2 on it has its own.
"""

from __future__ import annotations

import typing as t

import pytest
from flask import Flask

from flask_sequence import SequenceRun, Status
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.starts import TwoSteps

MakeApp = t.Callable[..., Flask]


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_request_inside_a_context_of_the_test(
    make_app: MakeApp, sqlite_url: str, caplog: pytest.LogCaptureFixture, is_fresh: bool
) -> None:
    app = make_app(sqlite_url, SEQUENCE_PUBLISH=None)

    @app.post("/start")
    def start() -> dict[str, t.Any]:
        run = TwoSteps.start(note="of the request")
        db.session.commit()
        return {"run": run.id}

    if is_fresh:
        serve = app.wsgi_app

        def serve_in_a_context_of_its_own(*args: t.Any) -> t.Any:
            with app.app_context():
                return serve(*args)

        t.cast("t.Any", app).wsgi_app = serve_in_a_context_of_its_own
    with app.app_context():
        run_id = app.test_client().post("/start").get_json()["run"]
        mine = TwoSteps.start(note="of the test")
        db.session.commit()
        assert drain(app) == 4
        db.session.refresh(mine)
        assert mine.status is Status.FINISHED
        assert db.session.get_one(SequenceRun, run_id).status is Status.FINISHED
    assert caplog.records == []
