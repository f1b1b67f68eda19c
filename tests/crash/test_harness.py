"""The harness can fail: with one mechanism switched off at least one check turns red.

The table of docs/explanation/how-it-is-tested.md, "The harness can fail", is the one of this
module.
"""

from __future__ import annotations

import logging
import re
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa

from flask_sequence.engine import claiming, doors, failing, patience, transaction
from flask_sequence.engine.connections import bind_of
from flask_sequence.engine.doors import Doors
from flask_sequence.engine.fence import Fence
from flask_sequence.rows import moves, reads, statements, upkeep
from flask_sequence.rows.dialects import short_transaction
from flask_sequence.rows.models import runs
from flask_sequence.worker.duties.publishing import PublishDue
from flask_sequence.worker.duties.recovery import FreeOrphans, FreeOwn
from tests.model import scenarios
from tests.model.simulation import Simulation
from tests.support import services
from tests.support.stepping import Stepping
from tests.support.working import Scene

if t.TYPE_CHECKING:
    from flask import Flask

Patch = pytest.MonkeyPatch
DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "how-it-is-tested.md"


def no_version(patch: Patch) -> None:
    """A move goes by the run's id and status only."""
    real = statements.move_held

    def move_held(connection: t.Any, claim: t.Any, *rest: t.Any) -> bool:
        version = connection.scalar(sa.select(runs.c.version).where(runs.c.id == claim.id))
        return real(connection, claim._replace(version=version), *rest)

    patch.setattr(moves, "move_held", move_held)


def no_fence_at_checkpoints(patch: Patch) -> None:
    """`db.session.commit()` in a step is a plain commit."""
    real = Doors.to_commit

    def to_commit(self: Doors, connection: t.Any, **how: t.Any) -> None:
        if self.fence.move is not moves.CHECKPOINT:
            real(self, connection, **how)

    patch.setattr(Doors, "to_commit", to_commit)


def no_renewal(patch: Patch) -> None:
    """The keeper does not renew its worker's row."""
    real = upkeep.renew_worker
    seen: set[str] = set()

    def renew_worker(connection: t.Any, worker_id: str, **values: t.Any) -> None:
        if worker_id not in seen:
            real(connection, worker_id, **values)
        seen.add(worker_id)

    patch.setattr(upkeep, "renew_worker", renew_worker)


def no_lapse(patch: Patch) -> None:
    """The row of a worker counts forever."""
    patch.setattr(reads, "orphans", lambda connection, **bounds: [])


def no_notice(patch: Patch) -> None:
    """The keeper does not look after its worker's children."""
    patch.setattr(FreeOwn, "__call__", lambda self: None)


def no_sweep(patch: Patch) -> None:
    """The keeper does not sweep."""
    for work in (FreeOrphans, PublishDue):
        patch.setattr(work, "__call__", lambda self: None)


def data_apart(patch: Patch) -> None:
    """The data is saved right after the step's commit, in one of their own."""
    real = Fence.answered

    def answered(self: Fence, over: sa.Connection | None) -> None:
        sent = self.sent
        real(self, over)
        with short_transaction(bind_of(self.runtime)) as connection:
            kept = sa.update(runs).where(runs.c.id == self.claim.id)
            connection.execute(kept.values(data=sent and sent.data))

    patch.setattr(Fence, "_changed", lambda self, sent: None)
    patch.setattr(Fence, "answered", answered)


def published_at_once(patch: Patch) -> None:
    """A start is published when it is written."""
    patch.setattr(
        transaction,
        "_note",
        lambda session, entry: entry.runtime.publish(entry.runtime, [entry.nudge]),
    )


def no_guard(patch: Patch) -> None:
    """Nobody asks whether the server has dropped writes (MariaDB)."""
    patch.setattr(doors, "release_guard", lambda connection: True)


def no_move_in_the_transaction(patch: Patch) -> None:
    """The fence takes it that the move was made (PostgreSQL)."""
    patch.setattr(moves, "make_and_commit", lambda *args: True)


class Row(t.NamedTuple):
    """A mechanism, and a check that needs it."""

    mechanism: str
    switch_off: t.Callable[[Patch], None]
    check: t.Callable[..., list[str]]
    red: str
    """What the check finds."""


TABLE = [
    Row("the version in the fence", no_version, scenarios.overtaken, "doubled"),
    Row(
        "the fence of a checkpoint",
        no_fence_at_checkpoints,
        scenarios.overtaken_before_a_checkpoint,
        "doubled",
    ),
    Row("the worker row, renewed", no_renewal, scenarios.long_step, "crash"),
    Row("the worker row, lapsed", no_lapse, scenarios.killed_worker, "lost"),
    Row("the notice of dead children", no_notice, scenarios.killed_child, "lost"),
    Row("the sweep", no_sweep, scenarios.flushed_broker, "lost"),
    Row("the data in the step's commit", data_apart, scenarios.killed_after_the_commit, "data"),
    Row("publishing after the commit", published_at_once, scenarios.rolled_back, "early"),
]
DOOMED = "the detection of doomed transactions"
ON_DATABASES = {
    "mariadb": Row(DOOMED, no_guard, scenarios.dropped_writes, "data"),
    "postgresql": Row(DOOMED, no_move_in_the_transaction, scenarios.aborted_transaction, "lost"),
}
REAL = "the notice of dead children, in a real worker"
OFF_IN_A_WORKER = """
from flask_sequence.worker.duties.recovery import FreeOwn

FreeOwn.__call__ = lambda self: None
"""


@pytest.fixture(autouse=True)
def quiet() -> t.Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def simulation(tmp_path: Path, sqlite_url: str, monkeypatch: Patch) -> t.Iterator[Simulation]:
    made = Simulation(tmp_path, sqlite_url.removeprefix("sqlite:///"), monkeypatch)
    yield made
    made.close()


def kinds(problems: list[str]) -> set[str]:
    return {problem.partition(":")[0] for problem in problems}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.mechanism)
def test_each_mechanism_is_needed(simulation: Simulation, row: Row) -> None:
    assert row.check(simulation) == []
    simulation.bury()
    simulation.clear()
    with Patch.context() as patch:
        row.switch_off(patch)
        found = row.check(simulation)
    simulation.bury()
    assert row.red in kinds(found), found


@pytest.mark.parametrize("kind", list(ON_DATABASES))
@pytest.mark.parametrize("is_off", [False, True])
def test_each_mechanism_is_needed_on(
    request: pytest.FixtureRequest, kind: str, is_off: bool, monkeypatch: Patch
) -> None:
    stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
    row = ON_DATABASES[kind]
    for module in (claiming, failing, patience):
        monkeypatch.setattr(module, "pause", lambda tries: None)
    if is_off:
        row.switch_off(monkeypatch)
    found = row.check(stepping)
    assert kinds(found) >= {row.red} if is_off else found == [], found


@pytest.mark.parametrize("is_off", [False, True])
def test_each_mechanism_is_needed_in_a_real_worker(
    make_app: t.Callable[..., Flask],
    postgresql_url: str,
    tmp_path: Path,
    start_worker: t.Callable[..., t.Any],
    is_off: bool,
) -> None:
    broker = services.make_broker("redis")
    more = OFF_IN_A_WORKER if is_off else ""
    scene = Scene.make(make_app, tmp_path, postgresql_url, broker.config(), more=more)
    found = scenarios.killed_child_of_a_real_worker(scene, start_worker)
    broker.clear()
    assert kinds(found) == ({"lost"} if is_off else set()), found


def test_the_table_of_the_docs_is_this_one() -> None:
    section = DOCS.read_text("utf-8").partition("## The harness can fail")[2].partition("\n## ")[0]
    cells = [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line[:1] == "|"]
    rows = [(row.mechanism, text(row.switch_off), text(row.check), row.red) for row in ALL]
    assert cells[2:] == [list(row) for row in rows]


def text(function: t.Callable[..., t.Any]) -> str:
    return (function.__doc__ or "").rstrip(".")


def _off_in_a_worker(patch: Patch) -> None:
    """The keeper does not look after its worker's children."""


ALL = [
    *TABLE,
    *ON_DATABASES.values(),
    Row(REAL, _off_in_a_worker, scenarios.killed_child_of_a_real_worker, "lost"),
]

if __name__ == "__main__":
    print("| mechanism | switched off | the check that turns red | what it finds |")
    print("| --- | --- | --- | --- |")
    for row in ALL:
        print(f"| {row.mechanism} | {text(row.switch_off)} | {text(row.check)} | {row.red} |")
