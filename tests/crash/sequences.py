"""The steps that are killed and stopped: they note attempts, write rows and add to the data."""

from __future__ import annotations

import os
import typing as t

import sqlalchemy as sa
from flask import current_app

from flask_sequence import BaseSequence, Step
from tests.support.application import Effect, db
from tests.support.waiting import wait_until
from tests.support.working import folder, note_attempt

OTHER = "other"
"""The key of the second bind."""
HELD_SECONDS = 150.0
"""How long a step waits at most for the harness."""

marks = sa.Table(
    "marks",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Integer),
)
"""What a step wrote into the second bind."""


def note(name: str, *words: object) -> None:
    """Add a line to a file of the scene, in one write."""
    file = os.open(folder() / name, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


class Traced(Step):
    """Notes the attempt, does its work, writes a row, and adds its name to the data."""

    def perform(self) -> None:
        name = type(self).__name__
        note_attempt(self.run.id, name)
        self.work()
        self.write(name)
        self.data["trail"] = [*self.data.get("trail", []), name]

    def work(self) -> None:
        """What makes this step another than the rest."""

    def write(self, what: str) -> None:
        """Write a row."""
        db.session.add(Effect(run_id=self.run.id, step=what, note=str(os.getpid())))


class One(Traced):
    pass


class Two(Traced):
    pass


class Three(Traced):
    pass


class Quiet(Traced):
    """Writes nothing: only the data change."""

    def write(self, what: str) -> None:
        pass


class Apart(Traced):
    """Performed by a nudge of its own, whatever the length of a burst."""

    priority = 1


class TwoBinds(Traced):
    def work(self) -> None:
        engine = current_app.extensions["sqlalchemy"].engines[OTHER]
        row = sa.insert(marks).values(run_id=self.run.id)
        db.session.execute(row, bind_arguments={"bind": engine})


class Looped(Traced):
    """Three rows, each with a checkpoint."""

    def work(self) -> None:
        for row in range(self.data.get("cursor", 0), 3):
            self.write(f"Looped {row}")
            self.data["cursor"] = row + 1
            db.session.commit()


class Held(Traced):
    """Its first attempt stands still until the harness opens the gate, or for ever."""

    def work(self) -> None:
        if self.attempt == 1:
            wait_until((folder() / "open").exists, HELD_SECONDS, interval=0.02)


class Wrote(Held):
    """The same, after a write that is not committed."""

    def work(self) -> None:
        self.write("Wrote early")
        db.session.flush()
        super().work()


class Careless(Held):
    """The same before a checkpoint, whose errors it swallows."""

    early: t.ClassVar[bool] = False

    def work(self) -> None:
        if self.early:
            self.write("Careless early")
            db.session.flush()
        super().work()
        try:
            if not self.early:
                self.write("Careless early")
            db.session.commit()
        except Exception as error:
            note("swallowed", self.run.id, self.attempt, type(error).__name__)
        note("passed", self.run.id, self.attempt)


class CarelessEarly(Careless):
    """The same, after a write that is not committed."""

    early = True


class CrashPlain(BaseSequence):
    steps = (One, Two, Three)


class CrashQuiet(BaseSequence):
    steps = (One, Quiet, Three)


class CrashApart(BaseSequence):
    steps = (One, Two, Apart)


class CrashBinds(BaseSequence):
    steps = (One, TwoBinds, Three)


class CrashLooped(BaseSequence):
    steps = (One, Looped, Three)


class CrashHeld(BaseSequence):
    steps = (Held, Two)


class CrashWrote(BaseSequence):
    steps = (Wrote, Two)


class CrashCareless(BaseSequence):
    steps = (Careless, Two)


class CrashCarelessEarly(BaseSequence):
    steps = (CarelessEarly, Two)
