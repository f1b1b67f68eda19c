"""An error of one of our statements holds no data, wherever it is shown; one of the user's does."""

from __future__ import annotations

import traceback
import typing as t

import pytest
import sqlalchemy as sa

from flask_sequence.failures import failure_of
from flask_sequence.rows.models import runs
from tests.support.application import Effect, db
from tests.support.stepping import Stepping, make_sequence

SECRET = "-".join(["hush", "1234"])
"""Nowhere in the source, which a traceback quotes."""
RENAME = "ALTER TABLE sequence_runs RENAME COLUMN queue TO other"
REFUSE = "ALTER TABLE sequence_runs ADD CHECK (version < 0)"


def error_of(act: t.Callable[[], object]) -> sa.exc.DBAPIError:
    with pytest.raises(sa.exc.DBAPIError) as caught:
        act()
    return caught.value


def start(sequence: t.Any) -> None:
    sequence.start(note=SECRET)
    db.session.commit()


def start_many(sequence: t.Any) -> None:
    sequence.start_many([{"note": SECRET}] * 3)


def start_with_key(sequence: t.Any) -> None:
    sequence.set(key=SECRET).start(note=SECRET)


@pytest.mark.parametrize("act", [start, start_many, start_with_key])
def test_a_start_that_fails_shows_no_data(
    stepping: Stepping, act: t.Callable[[t.Any], None]
) -> None:
    sequence = make_sequence(lambda step: None, name=f"Made{act.__name__}")
    with stepping.connect() as connection:
        connection.exec_driver_sql(RENAME)
    with stepping.app.app_context():
        error = error_of(lambda: act(sequence))
        assert SECRET in f"{error.params}"  # it was sent, or would have been
        assert SECRET not in f"{failure_of(error)}"
        assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("act", [start, start_many])
def test_a_row_that_the_server_repeats_is_not_kept(
    postgresql_stepping: Stepping, act: t.Callable[[t.Any], None]
) -> None:
    sequence = make_sequence(lambda step: None, name=f"Repeated{act.__name__}")
    with postgresql_stepping.connect() as connection:
        connection.exec_driver_sql(REFUSE)
    with postgresql_stepping.app.app_context():
        error = error_of(lambda: act(sequence))
    assert "Failing row contains (1, " in str(error)
    assert SECRET in str(error)  # by the driver, beyond our reach
    assert SECRET not in f"{failure_of(error)}"
    assert "violates check constraint" in failure_of(error).error


def test_a_statement_of_the_users_shows_its_parameters(stepping: Stepping) -> None:
    insert = sa.insert(Effect).values(note=SECRET, step=None)
    with stepping.app.app_context():
        error = error_of(lambda: db.session.execute(insert))
    assert SECRET in failure_of(error).error
    assert SECRET not in f"{failure_of(error, (SECRET,))}"


def test_a_query_of_the_users_that_reads_runs_is_as_ours(stepping: Stepping) -> None:
    missing: sa.ColumnElement[int] = sa.column("missing")
    query = sa.select(missing).where(runs.c.key == SECRET).select_from(runs)
    with stepping.app.app_context():
        error = error_of(lambda: db.session.execute(query))
    assert SECRET not in f"{error}{failure_of(error)}"
    assert "missing" in failure_of(error).error
