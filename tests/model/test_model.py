"""The model check: some histories, those that have shown a fault, and that it can turn red.

``bin/model --histories 5000`` looks at more of them.
"""

from __future__ import annotations

import logging
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_sequence.engine.doors import Doors
from flask_sequence.rows.moves import Move
from flask_sequence.worker.duties.publishing import PublishDue
from flask_sequence.worker.keeper import Keeper
from tests.model.__main__ import main
from tests.model.faults import Behaviour, Deed, Failing, How, Point, Stop, Way
from tests.model.histories import shorten, tell, tell_again
from tests.model.rules import Action
from tests.model.simulation import Simulation

if t.TYPE_CHECKING:
    from pathlib import Path

Patch = pytest.MonkeyPatch

HISTORIES = 15
MOST = 100
"""After how many histories a product that is broken must have been found out."""


@pytest.fixture
def simulation(tmp_path: Path, sqlite_url: str, monkeypatch: Patch) -> t.Iterator[Simulation]:
    logging.disable(logging.CRITICAL)
    made = Simulation(tmp_path, sqlite_url.removeprefix("sqlite:///"), monkeypatch)
    yield made
    made.close()
    logging.disable(logging.NOTSET)


def test_no_history_shows_a_fault(simulation: Simulation) -> None:
    for seed in range(1, HISTORIES + 1):
        fault = tell(simulation, seed)
        assert fault is None, str(fault)


KEPT: dict[str, list[Action]] = {
    "a commit inside the block of a savepoint was refused": [
        Action(
            "deliver", {"which": 0, "plan": [Deed(Behaviour.CHECKPOINT, Way.WITHIN)], "times": 1}
        )
    ],
    "a keeper kept the lock of a commit that had failed": [
        Action(
            "fail_duties",
            {
                "which": 0,
                "duties": ["remove the rows of dead workers"],
                "how": Failing.UNSENT,
            },
        ),
        Action("pass_time", {"seconds": 8.0}),
        Action("sweep", {"which": 0}),
        Action("deliver", {"which": 0, "plan": [], "times": 1}),
    ],
    "a database that refused a move many times was taken for a crash": [
        Action(
            "deliver_and_stop",
            {
                "which": 0,
                "plan": [
                    Deed(Behaviour.DO, Way.RELEASED),
                    Deed(Behaviour.CHECKPOINT, Way.TRANSACTION),
                ],
                "stops": [Stop(Point.COMMIT, 2, How.REFUSED, 25)],
            },
        ),
    ],
}
"""What has shown a fault once, as short as it goes."""


@pytest.mark.parametrize("name", list(KEPT))
def test_what_has_shown_a_fault_shows_none(simulation: Simulation, name: str) -> None:
    fault = tell_again(simulation, 0, KEPT[name])
    assert fault is None, str(fault)


# That it can turn red


def one_failing_duty_stops_the_rest(patch: Patch) -> None:
    real = Keeper._try

    def perform(self: Keeper, assigned: t.Any, trouble: t.Any) -> float:
        return 60.0 if trouble else real(self, assigned, trouble)

    patch.setattr(Keeper, "_try", perform)


def no_sweep(patch: Patch) -> None:
    patch.setattr(PublishDue, "__call__", lambda self: None)


def an_unanswered_commit_has_failed(patch: Patch) -> None:
    patch.setattr(Move, "went_through", lambda self, claim, row: False)


def no_fence_where_a_savepoint_is_open(patch: Patch) -> None:
    real = Doors.to_commit
    is_open: dict[str, bool] = {}

    def note(session: t.Any) -> None:
        is_open["now"] = session.in_nested_transaction()

    def to_commit(self: Doors, connection: t.Any, **how: t.Any) -> None:
        if not is_open.pop("now", False):
            real(self, connection, **how)

    patch.setattr(Doors, "to_commit", to_commit)
    sa.event.listen(Session, "before_commit", note)
    _listening.append(note)


_listening: list[t.Callable[[t.Any], None]] = []

BROKEN = (
    one_failing_duty_stops_the_rest,
    no_sweep,
    an_unanswered_commit_has_failed,
    no_fence_where_a_savepoint_is_open,
)


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda broken: broken.__name__)
def test_a_product_that_is_broken_is_found_out(
    simulation: Simulation, monkeypatch: Patch, break_it: t.Callable[[Patch], None]
) -> None:
    break_it(monkeypatch)
    try:
        assert any(tell(simulation, seed) for seed in range(1, MOST + 1))
    finally:
        while _listening:
            sa.event.remove(Session, "before_commit", _listening.pop())


def test_what_a_fault_does_not_need_is_left_out(simulation: Simulation, monkeypatch: Patch) -> None:
    one_failing_duty_stops_the_rest(monkeypatch)
    fault = next(filter(None, (tell(simulation, seed) for seed in range(1, MOST))))
    short = shorten(simulation, fault, tries=12)
    assert (short.seed, short.kind) == (fault.seed, fault.kind)
    assert len(short.actions) < len(fault.actions)
    failing = {"fail_duties", "lock", "lose_broker"}  # each makes a duty fail
    assert failing & {action.rule for action in short.actions}


def test_the_command_tells_of_a_fault_by_its_seed(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--histories", "1", "--seed", "7", "--steps", "2"]) == 0
    assert "1 histories in" in capsys.readouterr().out
    no_sweep(monkeypatch)
    assert main(["--histories", "40", "--faults", "1"]) == 1
    told = capsys.readouterr().out
    seed = told.partition("seed ")[2].partition(":")[0]
    assert main(["--histories", "1", "--seed", seed]) == 1
    fault, again = (told_lines(text) for text in (told, capsys.readouterr().out))
    assert fault == again


def told_lines(text: str) -> list[str]:
    """Give what is told of faults, without the progress."""
    return [line for line in text.splitlines() if line.startswith(("seed", "  "))]
