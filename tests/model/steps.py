"""What the simulated processes perform: steps that write an effect, and note it in the data."""

from __future__ import annotations

import typing as t

from flask_sequence import BaseSequence, Step
from tests.model.processes import Behaviour, Point, current_process
from tests.support.application import Effect, db

CHECKPOINTS = {Behaviour.CHECKPOINT, Behaviour.GUARDED, Behaviour.RAISE_LATE}
FAILURES = {Behaviour.RAISE, Behaviour.RAISE_LATE, Behaviour.RETRY, Behaviour.FAIL}


class Simulated(Step):
    """Writes an effect and notes it in the data, in the way that its process tells."""

    position = 0
    max_retries = 2
    retry_jitter = False

    def perform(self) -> None:
        process = current_process()
        assert process is not None
        assert self.run.id is not None
        behaviour = process.begin(self.run.id, self.position)
        process.at(Point.BODY)
        half = f"{self.position} half"
        if behaviour in CHECKPOINTS and half not in self.data["done"]:
            self.write(half)
            self.save(guarded=behaviour is Behaviour.GUARDED)
        if behaviour is Behaviour.START:
            self.write(f"{self.position} start")
            SimulatedChild.start(token=f"{self.data['token']}/{self.position}", done=[])
        self.write(str(self.position))
        process.at(Point.WROTE)
        self.leave(behaviour)

    def write(self, mark: str) -> None:
        """Write an effect, and its mark into the data."""
        db.session.add(Effect(run_id=self.run.id, step=self.data["token"], note=mark))
        db.session.flush()
        self.data["done"].append(mark)

    def save(self, *, guarded: bool) -> None:
        """Make a checkpoint."""
        try:
            db.session.commit()
        except Exception:
            if guarded:
                process = current_process()
                assert process is not None
                process.fails()
                raise ValueError("The step cannot tell whether it is saved.") from None
            raise

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
