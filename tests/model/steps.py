"""What the simulated processes perform: steps that write an effect, and note it in the data."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from flask_sequence import BaseSequence, Step
from flask_sequence.errors import ClaimLost, FinishInterrupt
from tests.model.faults import Behaviour, Deed, Errors, Point, Way
from tests.model.processes import Gone, current_process
from tests.support.application import Effect, db

CHECKPOINTS = {Behaviour.CHECKPOINT, Behaviour.RAISE_LATE}
FAILURES = {Behaviour.RAISE, Behaviour.RAISE_LATE, Behaviour.RETRY, Behaviour.FAIL}
CAUGHT: dict[Errors, tuple[type[BaseException], ...]] = {
    Errors.PASSED_ON: (),
    Errors.REPLACED: (Exception,),
    Errors.SWALLOWED: (Exception,),
    Errors.ALL_SWALLOWED: (BaseException,),
}


class Simulated(Step):
    """Writes an effect and notes it in the data, in the way that its process tells."""

    position = 0
    max_retries = 2
    retry_jitter = False

    def perform(self) -> None:
        process = current_process()
        assert process is not None
        assert self.run.id is not None
        performed = process.begin(self.run.id, self.position)
        try:
            process.at(Point.BODY)
            self.act(performed.deed)
            process.at(Point.WROTE)
            self.leave(performed.deed.behaviour)
        except (Gone, ClaimLost, FinishInterrupt):
            raise
        except BaseException:
            performed.has_failed = True
            raise

    def act(self, deed: Deed) -> None:
        """Write what there is to write."""
        if deed.behaviour in CHECKPOINTS:
            for part in ("half", "more"):
                if f"{self.position} {part}" not in self.data["done"]:
                    self.checkpoint(f"{self.position} {part}", deed)
        if deed.behaviour is Behaviour.START:
            self.write(f"{self.position} start")
            SimulatedChild.start(token=f"{self.data['token']}/{self.position}", done=[])
        self.write(str(self.position))

    def write(self, mark: str) -> None:
        """Write an effect, and its mark into the data."""
        db.session.add(Effect(run_id=self.run.id, step=self.data["token"], note=mark))
        db.session.flush()
        self.data["done"].append(mark)

    def checkpoint(self, mark: str, deed: Deed) -> None:
        """Write an effect and commit it."""
        try:
            WAYS[deed.way](self, mark)
        except Gone:
            raise
        except CAUGHT[deed.errors]:
            if deed.errors is Errors.REPLACED:
                raise ValueError("The step cannot tell whether it is saved.") from None
            self.recover(mark)

    def recover(self, mark: str) -> None:
        """Look whether an effect is there, so that the data tell the truth."""
        db.session.rollback()
        found = sa.select(Effect.id).where(Effect.run_id == self.run.id, Effect.note == mark)
        done = self.data["done"]
        if db.session.scalar(found) is None:
            done[:] = [each for each in done if each != mark]
        elif mark not in done:
            done.append(mark)

    def leave(self, behaviour: Behaviour) -> None:
        """End the step."""
        if behaviour in (Behaviour.RAISE, Behaviour.RAISE_LATE):
            raise ValueError("not yet")
        if behaviour is Behaviour.RETRY:
            self.retry(countdown=7.0)
        if behaviour is Behaviour.FAIL:
            self.fail("no")
        if behaviour is Behaviour.FINISH:
            self.finish()


# The ways of a checkpoint


def by_session(step: Simulated, mark: str) -> None:
    step.write(mark)
    db.session.commit()


def by_root(step: Simulated, mark: str) -> None:
    step.write(mark)
    transaction = db.session().get_transaction()
    assert transaction is not None
    transaction.commit()


def by_block(step: Simulated, mark: str) -> None:
    db.session.rollback()
    with db.session.begin():
        step.write(mark)


def by_block_with_savepoint(step: Simulated, mark: str) -> None:
    db.session.rollback()
    with db.session.begin():
        db.session.begin_nested()
        step.write(mark)


def by_connection(step: Simulated, mark: str) -> None:
    step.write(mark)
    db.session.connection().commit()
    db.session.close()


def by_transaction(step: Simulated, mark: str) -> None:
    step.write(mark)
    transaction = db.session.connection().get_transaction()
    assert transaction is not None
    transaction.commit()
    db.session.close()


def after_savepoint(step: Simulated, mark: str) -> None:
    with db.session.begin_nested():
        step.write(mark)
    db.session.commit()


def within_savepoint(step: Simulated, mark: str) -> None:
    with db.session.begin_nested():
        step.write(mark)
        db.session.commit()


WAYS: dict[Way, t.Callable[[Simulated, str], None]] = {
    Way.SESSION: by_session,
    Way.ROOT: by_root,
    Way.BLOCK: by_block,
    Way.OPEN_SAVEPOINT: by_block_with_savepoint,
    Way.CONNECTION: by_connection,
    Way.TRANSACTION: by_transaction,
    Way.RELEASED: after_savepoint,
    Way.WITHIN: within_savepoint,
}


class StepZero(Simulated):
    pass


class StepOne(Simulated):
    position = 1


class StepOneRenamed(Simulated):
    position = 1


class StepTwo(Simulated):
    position = 2


LAST = 2


class SimulatedChild(BaseSequence):
    steps = (StepZero,)


class SimulatedRun(BaseSequence):
    steps = (StepZero, StepOne, StepTwo)


def define(middle: type[Simulated]) -> type[SimulatedRun]:
    """Define the sequence anew, with another step in the middle; a name that it had is unknown."""
    members = {
        "steps": (StepZero, middle, StepTwo),
        "__module__": __name__,
        "__qualname__": SimulatedRun.__qualname__,
    }
    return t.cast("type[SimulatedRun]", type("SimulatedRun", (BaseSequence,), members))
