"""Strangers: transactions of somebody else that refer to runs, and stay open for a while.

On PostgreSQL a row that refers to a run takes FOR KEY SHARE on it, on MariaDB a shared lock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
import typing as t
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from tests.storm.nemesis import Fault, Planned
from tests.storm.past import IS_PAST
from tests.storm.tables import StormPaper

if t.TYPE_CHECKING:
    from tests.storm.place import Options, Place

ENDS = {"stranger": 10, "stranger locks": 4, "stranger rolls back": 3, "stranger killed": 3}
"""What a stranger does, and how often of 20; the first two commit."""
NEVER_COMMIT = ("stranger rolls back", "stranger killed")
EVERY = 0.4
"""How many seconds after one stranger the next one comes."""
HELD = (0.1, 3.0)
"""For how many seconds a transaction is open, at least and at most."""
MOST = 3
"""To how many runs a transaction refers, at most."""
LINES = 5
"""How many are open at once."""
NOTES = "strangers"
"""The file in which they write down what they saw, as the starters do."""
WAIT = {"postgresql": "SET lock_timeout = '5s'", "mariadb": "SET innodb_lock_wait_timeout = 5"}
"""How long they themselves wait for others."""
IDENTITY = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT connection_id()"}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


def plan_strangers(options: Options) -> list[Planned]:
    """Return what strangers do: the same for the same seed.

    :param options: The storm's.
    """
    if not options.has_strangers:
        return []
    chance = random.Random(f"{options.seed} strangers")
    kinds = chance.choices(list(ENDS), list(ENDS.values()), k=int(options.seconds / EVERY))
    return [
        Planned(number * EVERY, kind, chance.uniform(*HELD)) for number, kind in enumerate(kinds)
    ]


class Strangers:
    """Those who do it.

    :param place: The storm, with the address of the database for this process.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kind = place.options.database
        self.engine = sa.create_engine(place.database, poolclass=NullPool)
        self.chance = random.Random(f"{place.options.seed} papers")
        self.faults: list[Fault] = []
        self.numbers = itertools.count(1)

    @property
    def plans(self) -> list[list[Planned]]:
        """What is to be done, for each of those that are open at once."""
        plan = plan_strangers(self.place.options)
        return [plan[line::LINES] for line in range(LINES)] if plan else []

    def act(self, plan: list[Planned]) -> None:
        """Open one transaction after the other; those whose time is over are left out."""
        for planned in plan:
            time.sleep(max(0.0, self.place.began + planned.at - time.time()))
            if time.time() < self.place.began + self.place.options.seconds:
                with contextlib.suppress(SQLAlchemyError):  # the database is away, or it was killed
                    self.refer(planned)

    def refer(self, planned: Planned) -> None:
        """Refer to some runs in a transaction, which ends as planned."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(WAIT[self.kind])
            connection.commit()
            rows = self.choose(connection)
            connection.rollback()
            if not rows:
                return
            at, sent = time.time(), False
            try:
                self.hold(connection, planned, rows)
                if planned.kind not in NEVER_COMMIT:
                    self.tell("begin", rows)
                    sent = True
                    connection.commit()
                    self.tell("committed", rows)
            finally:
                if not sent:
                    self.tell("rolled_back", rows)
                runs = ", ".join(map(str, rows.values()))
                self.faults.append(Fault(planned.kind, f"runs {runs}", at, time.time()))

    def choose(self, connection: sa.Connection) -> dict[str, int]:
        """Choose some runs that have not ended or are about to be purged, and name a row for each.

        :param connection: To the database.
        """
        unended = SequenceRun.status.in_((Status.WAITING, Status.RUNNING))
        active = sa.select(SequenceRun.id).where(unended)
        past = sa.select(SequenceRun.id).where(IS_PAST).order_by(SequenceRun.finished_at).limit(9)
        number, most = next(self.numbers), self.chance.randint(1, MOST)
        rows: dict[str, int] = {}
        for name, query in (("s", active), ("o", past)):
            run_ids = list(connection.scalars(query))
            chosen = self.chance.sample(run_ids, min(len(run_ids), most))
            rows |= {f"{name}-{number}-{row}": run_id for row, run_id in enumerate(chosen)}
            most -= self.chance.randint(0, most)  # most refer to runs that have not ended
        return rows

    def hold(self, connection: sa.Connection, planned: Planned, rows: t.Mapping[str, int]) -> None:
        """Write the rows, and wait with the transaction open, perhaps until it is killed."""
        number = connection.exec_driver_sql(IDENTITY[self.kind]).scalar_one()
        for marker, run_id in rows.items():
            paper = sa.insert(StormPaper).values(marker=marker, run_id=run_id, step=0, loop=0)
            connection.execute(paper)
        if planned.kind == "stranger locks":
            others = sa.select(StormPaper.id).where(StormPaper.run_id.in_(rows.values()))
            connection.execute(others.with_for_update()).all()
        time.sleep(planned.seconds)
        if planned.kind == "stranger killed":
            with self.engine.connect() as other:
                other.exec_driver_sql(KILL[self.kind].format(number))

    def tell(self, what: str, markers: t.Iterable[str]) -> None:
        """Write down what was seen, in one piece."""
        lines = "".join(f"{what} {marker}\n" for marker in markers)
        file = os.open(Path(self.place.folder) / NOTES, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, lines.encode())
        os.close(file)
