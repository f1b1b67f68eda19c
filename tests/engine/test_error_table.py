"""What an error ends in, by where it is raised and what it is: a generated table.

A step is performed as often as its policy says, and beyond that only a bounded number of times;
its run ends, tells why, and nobody holds it.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import typing as t

import psycopg
import pymysql  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence import Status, StepStatus
from flask_sequence.engine import claiming, failing, patience
from flask_sequence.engine.attempt import FRESH_TRIES
from flask_sequence.rows import prepared, statements
from tests.support.application import db
from tests.support.stepping import Stepping, make_step, note

MAX_CRASHES, MAX_RETRIES = 2, 1
OURS = "UPDATE sequence_runs"
OWN = "SELECT 'what the step asks'"
TRANSIENT: dict[str, tuple[str | int, ...]] = {
    "postgresql": ("40001", "40P01", "55P03", "08006", "57P01", "53300", "53100", "25006"),
    "mariadb": (1020, 1205, 1213, 1412, 2006, 2013, 1927, 1021, 1040, 1114, 1203, 1290),
    "sqlite": (5, 6, 10, 13, 15),
}
PERMANENT: dict[str, tuple[str | int, ...]] = {
    "postgresql": ("42601", "22012", "23505", "25P03"),
    "mariadb": (1064, 1062, 1153),
    "sqlite": (1, 19, 18),
}
LIMITS: dict[str, tuple[str | int, ...]] = {"postgresql": ("57014",), "mariadb": (1969, 3024)}
"""Of a time that a statement may take: free where it is a statement of ours."""
FREE = {
    **{(kind, code): True for kind, codes in TRANSIENT.items() for code in codes},
    **{(kind, code): False for kind, codes in PERMANENT.items() for code in codes},
    **{(kind, code): None for kind, codes in LIMITS.items() for code in codes},
}
CODES = list(FREE)
TEXT = "no \U0001f389, \udcff, \0, \x1b[31m"
"""What is raised says something that not every database can store."""


def make_error(kind: str, code: str | int) -> Exception:
    """Make what a driver raises."""
    if kind == "postgresql":
        error: Exception = psycopg.errors.lookup(str(code))(TEXT)
        return error
    if kind == "mariadb":
        failed: Exception = pymysql.err.OperationalError(code, TEXT)
        return failed
    refused = sqlite3.OperationalError(TEXT)
    refused.sqlite_errorcode = int(code)
    return refused


class Trouble:
    """A run whose step meets an error at a place, each time or a number of times.

    :param stepping: The application.
    :param place: Where.
    :param make: Makes the error.
    :param times: How often it is raised.
    """

    def __init__(
        self, stepping: Stepping, place: str, make: t.Callable[[], Exception], times: float
    ) -> None:
        self.stepping = stepping
        self.bodies = self.told = 0
        self._place, self._make, self._times = place, make, times
        self._is_moving = self._is_storing = False
        with stepping.app.app_context():
            sa.event.listen(db.engine, "do_execute", self._at_statement)

    def start(self) -> int:
        """Start the run."""
        step = make_step(self.perform, max_retries=MAX_RETRIES, default_retry_delay=0)
        return self.stepping.start(step)

    def perform(self, step: object) -> None:
        """The step."""
        self.bodies += 1
        self._is_moving, self._is_storing = True, False
        note("done")
        if self._place == "the step's statement":
            db.session.execute(sa.text(OWN))
        elif self._place == "another engine":
            self._ask_elsewhere()
        elif self._place == "the driver alone":
            self.meet()
        elif self._place == "storing":
            self._is_storing = True
            raise ValueError(TEXT)

    def meet(self) -> None:
        """Raise the error, if it is to be raised once more."""
        if self.told < self._times:
            self.told += 1
            raise self._make()

    def _at_statement(self, cursor: object, statement: str, *_: object) -> None:
        is_claim = "sequence_runs.attempt + " in statement
        is_move = OURS in statement and not is_claim
        places = {
            "the claim": is_claim,
            "the step's statement": statement == OWN,
            "the step's move": is_move and self._is_moving,
            "storing": is_move and self._is_storing,
        }
        self._is_moving &= not is_move
        if places.get(self._place):
            self.meet()

    def _ask_elsewhere(self) -> None:
        other = sa.create_engine(self.stepping.engine.url, poolclass=NullPool)
        with other.connect() as connection:
            sa.event.listen(other, "do_execute", lambda *_: self.meet())
            connection.exec_driver_sql("SELECT 1")


@pytest.fixture
def met(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> t.Callable[[str, str, str | int, float], Trouble]:
    """What makes the trouble of a cell."""
    for module in (claiming, failing, patience):
        monkeypatch.setattr(module, "pause", lambda tries: None)

    def make(kind: str, place: str, code: str | int, times: float) -> Trouble:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stepping.runtime.settings = dataclasses.replace(
            stepping.runtime.settings, max_crashes=MAX_CRASHES
        )
        trouble = Trouble(stepping, place, lambda: make_error(kind, code), times)
        real = prepared.commit_along

        def commit_along(connection: t.Any, *rest: t.Any) -> bool:
            try:
                trouble._at_statement(None, OURS)
            except Exception as error:
                told = OURS if getattr(error, "sqlstate", None) == "57014" else None
                connection._handle_dbapi_exception(error, told, None, None, None)
            return real(connection, *rest)

        monkeypatch.setattr(statements, "commit_along", commit_along)
        return trouble

    return make


def costs_nothing(kind: str, code: str | int, *, ours: bool) -> bool:
    """Tell whether an error is free, by whose statement raised it."""
    is_free = FREE[kind, code]
    return ours if is_free is None else is_free


def bring_nudges(trouble: Trouble, run_id: int) -> list[BaseException]:
    """Bring nudges until the run has ended, and return what left them."""
    raised: list[BaseException] = []
    for _ in range(20):
        try:
            status = trouble.stepping.advance(run_id).status
        except Exception as error:
            raised.append(error)
        else:
            if status in (Status.FINISHED, Status.FAILED):
                break
    return raised


def check_ended(trouble: Trouble, run_id: int, *, finished: bool) -> None:
    row = trouble.stepping.row(run_id)
    assert row.status is (Status.FINISHED if finished else Status.FAILED)
    assert (row.worker_id, row.pid) == (None, None)
    assert bool(row.error) != finished
    assert trouble.stepping.notes() == ["done"] * finished


@pytest.mark.parametrize(("kind", "code"), CODES)
@pytest.mark.parametrize("place", ["the step's statement", "the step's move"])
def test_an_error_of_the_runs_database_that_stays(
    met: t.Callable[..., Trouble], place: str, kind: str, code: str | int
) -> None:
    is_free = costs_nothing(kind, code, ours=place == "the step's move")
    trouble = met(kind, place, code, float("inf"))
    run_id = trouble.start()
    assert bring_nudges(trouble, run_id) == []
    check_ended(trouble, run_id, finished=False)
    free = FRESH_TRIES + MAX_CRASHES if is_free else 0
    assert trouble.bodies == free + 1 + MAX_RETRIES


@pytest.mark.parametrize(("kind", "code"), CODES)
@pytest.mark.parametrize("place", ["the step's statement", "the step's move"])
def test_an_error_of_the_runs_database_that_goes(
    met: t.Callable[..., Trouble], place: str, kind: str, code: str | int
) -> None:
    is_free = costs_nothing(kind, code, ours=place == "the step's move")
    trouble = met(kind, place, code, 2)
    run_id = trouble.start()
    assert bring_nudges(trouble, run_id) == []
    check_ended(trouble, run_id, finished=is_free)
    assert trouble.bodies == (3 if is_free else 1 + MAX_RETRIES)
    assert trouble.stepping.row(run_id).retries == (0 if is_free else MAX_RETRIES)


@pytest.mark.parametrize(("kind", "code"), CODES)
@pytest.mark.parametrize("place", ["another engine", "the driver alone"])
def test_an_error_of_anything_else_is_the_steps(
    met: t.Callable[..., Trouble], place: str, kind: str, code: str | int
) -> None:
    trouble = met(kind, place, code, float("inf"))
    run_id = trouble.start()
    assert bring_nudges(trouble, run_id) == []
    check_ended(trouble, run_id, finished=False)
    assert trouble.bodies == 1 + MAX_RETRIES


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_an_error_of_the_claim_costs_no_attempt(
    met: t.Callable[..., Trouble], kind: str, code: str | int
) -> None:
    trouble = met(kind, "the claim", code, 7)
    run_id = trouble.start()
    raised = bring_nudges(trouble, run_id)
    is_transient = costs_nothing(kind, code, ours=True) or code == "25P03"
    assert bool(raised) != is_transient
    check_ended(trouble, run_id, finished=True)
    assert trouble.bodies == 1
    assert trouble.stepping.history(run_id) == [("perform", 1, StepStatus.FINISHED)]


@pytest.mark.parametrize(("kind", "code"), CODES)
@pytest.mark.parametrize("times", [2, 12])
def test_a_failure_is_stored_in_the_end(
    met: t.Callable[..., Trouble], times: int, kind: str, code: str | int
) -> None:
    trouble = met(kind, "storing", code, times)
    run_id = trouble.start()
    assert bring_nudges(trouble, run_id) == []
    check_ended(trouble, run_id, finished=False)
    assert trouble.bodies == 1 + MAX_RETRIES
    assert trouble.stepping.row(run_id).error.startswith("ValueError")
