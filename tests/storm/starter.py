"""A process that starts runs during a storm: ``python -m tests.storm.starter NUMBER``.

It writes down what it saw, one line before and one after each transaction: ``begin`` (a transaction
with this start may have been committed), ``committed`` or ``rolled_back``.
"""

from __future__ import annotations

import random
import sys
import time
import typing as t
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from tests.storm import celery_chain
from tests.storm.place import BEGAN, Place, this_place
from tests.storm.sequences import Storm
from tests.storm.tables import StormPaper, StormStart, db, first_data, make_app
from tests.support.waiting import wait_until

PAUSE_SECONDS = 0.2
"""How long to wait after a transaction that failed."""
SHARE = 0.9
"""In which part of the storm the starts happen."""


CUT: dict[str, dict[str, t.Any]] = {
    "postgresql": {"connect_timeout": 5, "keepalives_idle": 5, "tcp_user_timeout": 10_000},
    "mariadb": {"connect_timeout": 5, "read_timeout": 10, "write_timeout": 10},
    "sqlite": {},
}
"""The arguments for the driver with which an application notices that a link is cut."""


class Starter:
    """Starts its share of the runs, spread over the storm.

    :param place: The storm.
    :param number: Which of its starters.
    """

    def __init__(self, place: Place, number: int) -> None:
        self.place, self.number = place, number
        self.options = place.options
        self.chance = random.Random(f"{self.options.seed} starter {number}")
        self.file = (Path(place.folder) / f"starts-{number}").open("a", buffering=1)
        self.markers = 0
        self.begin: t.Callable[[str], None] = self.begin_run
        # As a web process, which has to look after its connections itself.
        cut = CUT[place.options.database] if place.options.partition else {}
        self.app = celery_chain.flask_app if self.options.peer else make_app(place, **cut)

    def run(self) -> None:
        """Start them all."""
        began = self.wait()
        count = self.options.runs // self.options.starters
        count += self.number < self.options.runs % self.options.starters
        done = 0
        while done < count:
            due = began + self.options.seconds * SHARE * done / count
            time.sleep(max(0.0, due - time.time()))
            size = min(self.chance.choice((1, 1, 2, 4)), count - done)
            if self.chance.random() < 0.2:
                self.transact([self.marker() for _ in range(size)], rolls_back=True)
            while not self.transact([self.marker() for _ in range(size)]):
                time.sleep(PAUSE_SECONDS)
            done += size

    def wait(self) -> float:
        """Wait for the beginning, and give when it was."""
        path = Path(self.place.folder) / BEGAN
        return float(wait_until(lambda: path.exists() and path.read_text(), 60, interval=0.02))

    def marker(self) -> str:
        """Give a name that no other start has, nor another try of the same one."""
        self.markers += 1
        return f"{self.number}-{self.markers}"

    def tell(self, what: str, markers: t.Iterable[str]) -> None:
        """Write down what was seen, in one piece."""
        self.file.write("".join(f"{what} {marker}\n" for marker in markers))

    def transact(self, markers: list[str], *, rolls_back: bool = False) -> bool:
        """Start some runs in one transaction, and tell whether it is known to be committed."""
        with self.app.app_context():
            try:
                for marker in markers:
                    db.session.add(StormStart(marker=marker))
                    self.begin(marker)
                self.start_and_undo()
            except SQLAlchemyError:  # nobody has sent a COMMIT
                rolls_back = True
            if rolls_back:
                db.session.rollback()
                self.tell("rolled_back", markers)
                return False
            self.tell("begin", markers)
            try:
                db.session.commit()
            except SQLAlchemyError:
                return False  # it may have been committed
            self.tell("committed", markers)
            if self.options.peer:
                self.send_chains(markers)
        return True

    def begin_run(self, marker: str) -> None:
        """Start a run, with a row that refers to it."""
        if not self.options.peer:
            run = Storm.start(**first_data(marker, self.options.seed))
            db.session.add(StormPaper(run=run, marker=marker))

    def start_and_undo(self) -> None:
        """Start one more in a savepoint that is rolled back, now and then."""
        if self.options.peer or self.chance.random() < 0.8:
            return
        marker = self.marker()
        savepoint = db.session.begin_nested()
        Storm.start(**first_data(marker, self.options.seed))
        db.session.flush()
        savepoint.rollback()
        self.tell("rolled_back", [marker])

    def send_chains(self, markers: list[str]) -> None:
        """Send the chains, after the commit, until the broker has taken each."""
        for marker in markers:
            while not celery_chain.send(marker):
                time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    Starter(this_place(), int(sys.argv[1])).run()
