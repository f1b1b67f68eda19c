"""Sequences, samples and shortcuts for tests of what goes wrong outside our processes."""

from __future__ import annotations

import threading
import time
import typing as t
from dataclasses import dataclass, field

import sqlalchemy as sa
from kombu.transport.redis import Channel
from sqlalchemy.pool import NullPool

from flask_sequence import BaseSequence, SequenceRun, Status
from tests.support.application import Effect, db
from tests.support.working import Gate, Noted, Scene, folder

SETTINGS: dict[str, t.Any] = {"SEQUENCE_IMPORTS": ("tests.support.faulting",)}
REPEATED = """
    from tests.support.faulting import repeat

    repeat()
"""
"""Lines for a worker's module: what it sends is delivered ten times."""
DELAY_SECONDS = 0.8
"""Shorter than the sweep's interval: the nudge waits in the broker, by the clocks of others."""


def repeat(patch: t.Callable[[t.Any, str, t.Any], None] = setattr) -> None:
    """Have Redis deliver each message that this process sends ten times."""
    put = Channel._put

    def put_ten_times(channel: t.Any, queue: str, message: t.Any, **kwargs: t.Any) -> None:
        for _ in range(10):
            message["properties"]["delivery_tag"] = channel._next_delivery_tag()
            put(channel, queue, message, **kwargs)

    patch(Channel, "_put", put_ten_times)


class Brief(Noted):
    """Works for as long as the step of a small application."""

    def work(self) -> None:
        time.sleep(0.05)


class BriefToo(Brief):
    pass


class BriefLast(Brief):
    pass


class Lasting(Noted):
    """Works for as many seconds as its run says."""

    def work(self) -> None:
        time.sleep(self.data["seconds"])


class Asleep(Noted):
    """Waits a minute for the database's answer, until the test opens the gate."""

    def work(self) -> None:
        if (folder() / "open").exists():
            return
        is_postgresql = db.session.get_bind().dialect.name == "postgresql"
        db.session.execute(sa.text(f"SELECT {'pg_sleep' if is_postgresql else 'SLEEP'}(60)"))


class Late(Noted):
    """Succeeds at the second attempt."""

    def work(self) -> None:
        if self.attempt == 1:
            self.retry(countdown=DELAY_SECONDS)


class Holding(Noted):
    """Reads, writes a row that refers to its run, and holds its locks for some leases."""

    def work(self) -> None:
        db.session.scalars(sa.select(Effect)).all()
        row = {"run_id": self.run.id}
        db.session.execute(sa.text("INSERT INTO notes (run_id) VALUES (:run_id)"), row)
        time.sleep(self.data["seconds"])


class FaultHolding(BaseSequence):
    steps = (Holding, BriefLast)


class FaultBrief(BaseSequence):
    steps = (Brief, BriefToo, BriefLast)


class FaultTwo(BaseSequence):
    steps = (Brief, BriefLast)


class FaultLate(BaseSequence):
    steps = (Late,)


class FaultGated(BaseSequence):
    steps = (Gate, BriefLast)


class FaultAsleep(BaseSequence):
    steps = (Asleep, BriefLast)


class FaultLasting(BaseSequence):
    steps = (Lasting, BriefLast)


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment."""

    at: float
    """By the monotonic clock."""
    waiting: int
    """Runs that wait."""
    depth: int | None
    """Messages that wait; None: the broker did not answer."""
    attempts: int
    """How many steps were begun so far."""


@dataclass
class Sampler:
    """Watches a scene and its broker in a thread.

    :param scene: The application.
    :param depth: Counts the messages that wait; what it raises is a broker that is down.
    """

    scene: Scene
    depth: t.Callable[[], int]
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> t.Self:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def idle(self) -> float:
        """Give the most seconds in which no step was begun although runs waited."""
        longest, since = 0.0, self.samples[0]
        for sample in self.samples:
            if sample.attempts != since.attempts or not sample.waiting:
                since = sample
            longest = max(longest, sample.at - since.at)
        return longest

    def flood(self) -> float:
        """Give how many messages there were at most for each run that waited, of 100 or more."""
        many = [sample for sample in self.samples if sample.waiting >= 100]
        return max((sample.depth or 0) / sample.waiting for sample in many)

    def _watch(self) -> None:
        url = self.scene.app.config["SQLALCHEMY_DATABASE_URI"]
        waiting = sa.select(sa.func.count()).where(SequenceRun.status == Status.WAITING)
        engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            while not self._stopped.wait(0.05):
                count = connection.scalar(waiting) or 0
                sample = Sample(time.monotonic(), count, self._depth(), len(self.scene.attempts()))
                self.samples.append(sample)

    def _depth(self) -> int | None:
        try:
            return self.depth()
        except Exception:
            return None
