"""What a run costs: which statements are sent for it, and when the data travel."""

from __future__ import annotations

import re
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import Status
from flask_sequence.engine.runner import Message, advance
from flask_sequence.rows import prepared, statements
from tests.support.application import db
from tests.support.relay import Relay
from tests.support.stepping import Stepping, make_sequence, make_step, note_by_core

MakeStepping = t.Callable[..., Stepping]

MOVES = {
    "postgresql": ["WITH"],  # the move and its row of the history are one statement
    "mariadb": ["RELEASE", "UPDATE", "INSERT"],
    "sqlite": ["UPDATE", "INSERT"],
}
CLAIMS = {
    "postgresql": ["SELECT", "UPDATE"],
    "mariadb": ["SELECT", "UPDATE", "SELECT"],
    "sqlite": ["SELECT", "UPDATE"],
}


ROUND_TRIPS = {
    "postgresql": {"row": 3, "empty": 1, "claim": 2},
    "mariadb": {"row": 7, "empty": 4, "claim": 5},
}
"""How often a step, and a claim after a look, wait for the database's answer."""


class Sent:
    """What an application sends to its database, statement by statement."""

    def __init__(self, stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[tuple[str, t.Any]] = []
        self.isolation: list[str | None] = []
        """The isolation level that was chosen for each, in a connection's options."""
        self.dialect = stepping.dialect
        with stepping.app.app_context():
            sa.event.listen(db.engine, "before_cursor_execute", self._record)
            sa.event.listen(db.engine, "commit", lambda connection: self._note("COMMIT"))
        # What goes along with COMMIT passes SQLAlchemy's events by.
        self._along = prepared.commit_along
        monkeypatch.setattr(statements, "commit_along", self._commit_along)

    def _commit_along(self, connection: t.Any, statement: t.Any, values: t.Any) -> bool:
        self._note(*statement.for_driver(connection.dialect, values))
        return self._along(connection, statement, values)

    def _record(
        self, connection: t.Any, cursor: t.Any, statement: str, values: t.Any, *_: t.Any
    ) -> None:
        self._note(statement, values)
        self.isolation.append(connection.get_execution_options().get("isolation_level"))

    def _note(self, statement: str, values: t.Any = ()) -> None:
        self.statements.append((statement, values))

    @property
    def verbs(self) -> list[str]:
        """The first word of each."""
        return [statement.split()[0] for statement, _ in self.statements]

    def carrying(self, text: str) -> int:
        """Count those that write a text."""
        return sum(text in str(values) for _, values in self.statements)

    @property
    def reading_data(self) -> int:
        """Count those that read the data."""
        asked = re.compile(r"\bdata( AS TEXT\))? AS data\b")
        return sum(bool(asked.search(statement)) for statement, _ in self.statements)


@pytest.fixture
def bursting(make_app: t.Callable[..., Flask], database_url: str) -> Stepping:
    """An application whose runs are performed in one burst, and that has performed one."""
    stepping = Stepping(make_app(database_url, SEQUENCE_BURST_SECONDS=60))
    stepping.run(make_step(lambda step: note_by_core("first"), "first"))
    return stepping


def test_a_step_costs_one_move_and_one_commit(
    bursting: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [make_step(lambda step: note_by_core("own"), f"s{number}") for number in range(3)]
    run_id = bursting.start(*steps)
    sent = Sent(bursting, monkeypatch)
    assert bursting.advance(run_id).status is Status.FINISHED
    guard = ["SAVEPOINT"] if bursting.dialect == "mariadb" else []
    step = [*guard, "INSERT", *MOVES[bursting.dialect], "COMMIT"]
    assert sent.verbs == [*CLAIMS[bursting.dialect], "COMMIT", *step * 3]


def test_a_step_that_touches_no_session_costs_its_move(
    bursting: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(step: t.Any) -> None:
        step.data["number"] += 1

    run_id = bursting.start(*(make_step(count, f"s{number}") for number in range(3)), number=0)
    sent = Sent(bursting, monkeypatch)
    assert bursting.advance(run_id).status is Status.FINISHED
    begin = ["BEGIN"] if bursting.dialect == "sqlite" else []
    move = [verb for verb in MOVES[bursting.dialect] if verb != "RELEASE"]
    assert sent.verbs == [*CLAIMS[bursting.dialect], "COMMIT", *[*begin, *move, "COMMIT"] * 3]
    # On PostgreSQL it commits for itself: a transaction would cost two round trips more.
    isolation = {"postgresql": "AUTOCOMMIT"}.get(bursting.dialect)
    assert set(sent.isolation[len(CLAIMS[bursting.dialect]) :]) == {isolation}
    assert bursting.row(run_id).data["number"] == 3


def test_a_message_that_names_the_step_spares_the_look(
    bursting: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = bursting.start(make_step(lambda step: None, "s0"))
    label = f"{bursting.row(run_id).sequence}.s0"
    sent = Sent(bursting, monkeypatch)
    assert bursting.advance(run_id, message=Message(label=label)).status is Status.FINISHED
    claim = ["UPDATE"] if bursting.dialect == "postgresql" else CLAIMS[bursting.dialect]
    assert sent.verbs[: len(claim) + 1] == [*claim, "COMMIT"]


@pytest.mark.parametrize("named", [False, True])
def test_a_stale_nudge_costs_a_look(
    bursting: Stepping, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    run_id = bursting.start(make_step(lambda step: None, "s0"))
    row = bursting.row(run_id)
    bursting.set(run_id, version=row.version + 1)
    sent = Sent(bursting, monkeypatch)
    label = f"{row.sequence}.s0" if named else ""
    outcome = advance(bursting.runtime, run_id, row.version, message=Message(label=label))
    assert outcome.status is None
    unseen = ["UPDATE"] if named and bursting.dialect == "postgresql" else []
    assert sent.verbs == [*unseen, "SELECT", "COMMIT"]


def test_large_data_travel_once_each_way(
    bursting: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(step: t.Any) -> None:
        step.data["number"] += 1

    idle = [make_step(lambda step: None, f"s{number}") for number in range(3)]
    run_id = bursting.start(*idle, make_step(change, "change"), number=0, large="x" * 1_000_000)
    sent = Sent(bursting, monkeypatch)
    assert bursting.advance(run_id).status is Status.FINISHED
    assert (sent.reading_data, sent.carrying("x" * 1_000_000)) == (1, 1)
    assert bursting.row(run_id).data["number"] == 1


Write = t.Callable[[str], None]


class Distant:
    """An application whose database is 20 ms away.

    :param make_app: The fixture.
    :param url: The address of the database.
    :param relay: What makes it so.
    """

    def __init__(self, make_app: t.Callable[..., Flask], url: str, relay: Relay) -> None:
        self.stepping = Stepping(make_app(relay.url(url), SEQUENCE_BURST_SECONDS=60))
        self._relay = relay

    def trips(self, count: int, write: Write | None) -> int:
        """Count the round trips of a run, from the claim to its end.

        :param count: How many steps it has.
        :param write: What inserts a row in each; None: nothing does.
        """

        def body(step: t.Any) -> None:
            step.data["number"] += 1
            if write is not None:
                write("own")

        sequence = make_sequence(*(make_step(body, f"s{number}") for number in range(count)))
        with self.stepping.app.app_context():
            run = sequence.start(number=0)
            db.session.flush()
            run_id = run.id
            db.session.commit()  # and reads nothing: at a rollback, psycopg would forget all
        before = self._relay.trips
        assert advance(self.stepping.runtime, run_id, 0).status is Status.FINISHED
        return self._relay.trips - before


@pytest.fixture(params=["postgresql", "mariadb"])
def distant(
    request: pytest.FixtureRequest, make_app: t.Callable[..., Flask]
) -> t.Iterator[Distant]:
    """The same, when drivers have prepared what they prepare."""
    url = request.getfixturevalue(f"{request.param}_url")
    with Relay.to(url) as relay:
        made = Distant(make_app, url, relay)
        for _ in range(7):  # psycopg does when it has sent it five times
            made.trips(3, None)
            made.trips(3, note_by_core)
        yield made


def test_how_often_a_step_waits_for_the_database(distant: Distant) -> None:
    few = distant.trips(3, None)
    empty = (distant.trips(13, None) - few) / 10
    row = (distant.trips(13, note_by_core) - distant.trips(3, note_by_core)) / 10
    found = {"row": row, "empty": empty, "claim": few - 3 * empty}
    assert found == ROUND_TRIPS[distant.stepping.dialect]
