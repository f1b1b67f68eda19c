"""Short transactions beside the session at hand."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence import sessions
from flask_sequence.runtime import runtime_of
from flask_sequence.sessions import connection_of, fresh_read, own_transaction
from tests.application import db
from tests.starts import wrapped_engine

if t.TYPE_CHECKING:
    from flask import Flask

    from tests.stepping import Stepping


def test_a_bind_that_is_not_found_is_the_callers_error(
    sqlite_stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runtime: object) -> t.NoReturn:
        raise LookupError("no bind")

    monkeypatch.setattr(sessions, "bind_of", fail)
    with pytest.raises(LookupError, match="no bind"), own_transaction(sqlite_stepping.runtime):
        pass


def test_a_teardown_that_raises_leaves_a_short_transaction_alone(
    sqlite_stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "flask_sequence")
    problems = [ValueError("in the teardown")]

    @sqlite_stepping.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        if problems:
            raise problems.pop()

    with own_transaction(sqlite_stepping.runtime) as connection:
        assert connection.scalar(sa.select(1)) == 1
    assert "in the teardown" in caplog.text
    assert not db.session.registry.registry


def test_a_fresh_read_of_a_database_in_memory_is_on_the_one_connection(
    make_app: t.Callable[..., Flask],
) -> None:
    app = make_app("sqlite://")
    with app.app_context():
        db.session.execute(sa.text("CREATE TABLE here (n INT)"))
        with fresh_read(runtime_of(app)) as connection:
            assert connection is connection_of(db.session())
            connection.exec_driver_sql("SELECT n FROM here")


def test_a_fresh_read_in_a_tests_own_transaction_is_on_its_connection(
    sqlite_stepping: Stepping,
) -> None:
    app = sqlite_stepping.app
    with app.app_context(), wrapped_engine(app, db), fresh_read(runtime_of(app)) as connection:
        engine: object = db.engines[None]
        assert connection is engine
