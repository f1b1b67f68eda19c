"""Short stories in which one mechanism of the product matters; each tells what went wrong.

They are told by the simulation and checked by its ledger, as is the model check; those of which
the database or the worker is a part are told on a real one.
"""

from __future__ import annotations

import os
import signal
import typing as t

import sqlalchemy as sa

from flask_sequence.rows.models import step_runs
from flask_sequence.testing import drain
from tests.model.faults import Behaviour, Deed, Errors, How, Point, Stop
from tests.model.ledger import Books, problems, unfinished
from tests.model.simulation import Simulation
from tests.model.workers import LEASE, SimulatedWorker
from tests.support.application import Effect, db
from tests.support.stepping import Stepping, make_step
from tests.support.waiting import wait_until
from tests.support.working import Scene, WorkGated

AT_FIRST_BODY = Stop(Point.BODY, 1, How.STAND)
AT_SECOND_BODY = Stop(Point.BODY, 2, How.STAND)


def outcome(simulation: Simulation, worker: SimulatedWorker | None = None) -> list[str]:
    """Tell what is wrong once all is healed, or once a worker had the time to do it."""
    if worker is None:
        simulation.heal()
    else:
        simulation.work(worker)
    return [*simulation.problems(), *unfinished(simulation.books())]


def overtaken(simulation: Simulation) -> list[str]:
    """A process stands still in a step past its lease, and goes on when another is in it."""
    slow, other = simulation.worker(burst=True), simulation.worker()
    simulation.start()
    zombie = simulation.deliver(slow, stops=[AT_FIRST_BODY])
    simulation.lapse(other)
    holder = simulation.deliver(other, stops=[AT_FIRST_BODY])
    zombie.go(AT_SECOND_BODY)
    holder.go()
    return outcome(simulation)


def overtaken_before_a_checkpoint(simulation: Simulation) -> list[str]:
    """A process stands still before a checkpoint, and goes on when another has finished."""
    slow, other = simulation.worker(), simulation.worker()
    simulation.start()
    zombie = simulation.deliver(
        slow, plan=[Deed(Behaviour.CHECKPOINT, errors=Errors.REPLACED)], stops=[AT_FIRST_BODY]
    )
    simulation.lapse(other)
    simulation.deliver(other, plan=[Deed(Behaviour.CHECKPOINT)])
    zombie.go()
    return outcome(simulation)


def long_step(simulation: Simulation) -> list[str]:
    """A step takes five leases, in a worker that lives."""
    slow, other = simulation.worker(), simulation.worker()
    simulation.start()
    process = simulation.deliver(slow, stops=[AT_FIRST_BODY])
    for _ in range(15):
        simulation.database.now += LEASE / 3
        slow.look()
        other.look()
        other.sweep()
    process.go()
    return outcome(simulation)


def killed_worker(simulation: Simulation) -> list[str]:
    """A worker is killed in a step, and another one lives."""
    first, other = simulation.worker(), simulation.worker()
    simulation.start()
    simulation.deliver(first, stops=[AT_FIRST_BODY])
    first.die()
    return outcome(simulation, other)


def killed_child(simulation: Simulation) -> list[str]:
    """A child is killed in a step, and its worker lives."""
    worker = simulation.worker()
    simulation.start()
    simulation.deliver(worker, stops=[Stop(Point.WROTE, 1, How.DIE)])
    return outcome(simulation, worker)


def flushed_broker(simulation: Simulation) -> list[str]:
    """The broker forgets a nudge."""
    worker = simulation.worker()
    simulation.start()
    simulation.nudges.clear()
    return outcome(simulation, worker)


def killed_after_the_commit(simulation: Simulation) -> list[str]:
    """A child is killed as soon as a step is committed; the first commit is that of the claim."""
    worker = simulation.worker()
    simulation.start()
    simulation.deliver(worker, stops=[Stop(Point.COMMITTED, 2, How.DIE)])
    return outcome(simulation)


def rolled_back(simulation: Simulation) -> list[str]:
    """One request commits its start, and another one rolls back."""
    worker = simulation.worker()
    simulation.start()
    simulation.start(commit=False)
    return outcome(simulation, worker)


# On a real database


def dropped_writes(stepping: Stepping) -> list[str]:
    """The server drops what the step has written, as after a deadlock, and takes what follows."""

    def lose() -> None:
        db.session.connection().connection.cursor().execute("ROLLBACK")

    return _swallowed(stepping, lose)


def aborted_transaction(stepping: Stepping) -> list[str]:
    """A statement fails after the step had ended, in a listener that swallows the error."""

    def fail(session: t.Any) -> None:
        try:
            session.execute(sa.text("SELECT no_such_column"))
        except sa.exc.DBAPIError:
            return

    def lose() -> None:
        sa.event.listen(db.session(), "before_commit", fail)

    return _swallowed(stepping, lose)


def _swallowed(stepping: Stepping, lose: t.Callable[[], object]) -> list[str]:
    bodies = []

    def body(step: t.Any) -> None:
        bodies.append(step.attempt)
        effect = {"run_id": step.run.id, "step": "token", "note": "0"}
        db.session.execute(sa.insert(Effect).values(**effect))
        step.data["done"].append("0")
        if len(bodies) == 1:
            lose()

    run_id = stepping.start(make_step(body), token="token", done=[])
    stepping.advance(run_id)
    drain(stepping.app, ignore_due=True)
    with stepping.connect() as connection:
        effects = connection.execute(sa.select(Effect.run_id, Effect.step, Effect.note)).all()
        history = connection.execute(sa.select(step_runs)).mappings().all()
    books = Books(
        runs=[stepping.row(run_id)._mapping],
        effects=[(owner or 0, token, mark) for owner, token, mark in effects],
        history=history,
        moves=[],
        tokens={"token"},
        positions={"body": 0},
        last={"Made": 0},
    )
    return [*problems(books), *unfinished(books)]


# With a real worker

NOTICED_SECONDS = 3.0
SLACK_SECONDS = 3.0


def killed_child_of_a_real_worker(scene: Scene, start: t.Callable[..., t.Any]) -> list[str]:
    """A child of a real worker is killed in a step; its run must go on within 3 s."""
    start(scene.source, "-c", "1", env=scene.env)
    (run_id,) = scene.start(WorkGated)
    wait_until(lambda: scene.attempts("Gate"))
    os.kill(scene.attempts("Gate")[0][1], signal.SIGKILL)
    scene.open()
    try:
        scene.wait([run_id], NOTICED_SECONDS + SLACK_SECONDS)
    except TimeoutError as error:
        return [f"lost: {error}"]
    effects = scene.effects()
    return [f"doubled: {effects}"] if set(effects.values()) != {1} else []
