"""The sequence of a storm: five steps; some runs fail once on purpose, the third step commits."""

from __future__ import annotations

import contextlib
import random
import time
import typing as t

from flask_sequence import BaseSequence, Step
from tests.storm.checker import LOOPS
from tests.storm.place import this_place
from tests.storm.tables import db, write_effect


class TroubleError(Exception):
    """A failure on purpose."""


class Stormy(Step):
    """Writes its effects, and takes some time before and after each."""

    number: t.ClassVar[int]
    loops: t.ClassVar[int] = 1
    default_retry_delay = 0.2

    def perform(self) -> None:
        this_place().note("attempt", self.data["marker"], self.number)
        while (index := self.data["cursor"]) < self.loops:
            self.write(index)
            if self.loops > 1:
                self.checkpoint()
        self.data["cursor"] = 0
        if self.data["trouble"] == self.number and self.attempt == 1:
            self.fail_once()

    def write(self, index: int) -> None:
        """Write an effect, in the middle of the time that it takes."""
        seconds = random.uniform(0, this_place().options.step_seconds / self.loops)
        time.sleep(seconds)
        marker, value = self.data["marker"], self.data["value"]
        self.data["value"] = write_effect(marker, value, self.number, index, self.run.id)
        self.data["cursor"] = index + 1
        db.session.flush()
        time.sleep(seconds)

    def checkpoint(self) -> None:
        """Commit; some steps think that they may go on when that fails."""
        with contextlib.suppress(*((Exception,) if self.data["swallows"] else ())):
            db.session.commit()

    def fail_once(self) -> None:
        """Fail with all written, which the retry must not find."""
        db.session.flush()
        this_place().note("raised", self.data["marker"], self.number)
        if self.data["asks"]:
            self.retry(countdown=0.3)
        raise TroubleError(self.data["marker"])


class One(Stormy):
    number = 1


class Two(Stormy):
    number = 2


class Three(Stormy):
    number = 3
    loops = LOOPS


class Four(Stormy):
    number = 4


class Five(Stormy):
    number = 5


class Storm(BaseSequence):
    steps = (One, Two, Three, Four, Five)
