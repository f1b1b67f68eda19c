"""Reads what a storm has left: the starters' lines, the attempts, and the database."""

from __future__ import annotations

import collections
import contextlib
import typing as t
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from flask_sequence import SequenceRun, Status
from tests.storm.checker import STEPS, Effect, Ending, Ledger, Paper
from tests.storm.past import IS_PAST
from tests.storm.strangers import NOTES
from tests.storm.tables import StormEffect, StormPaper, StormStart, db, make_app

if t.TYPE_CHECKING:
    from tests.storm.place import Place


@dataclass(frozen=True)
class Counts:
    """How far a storm is."""

    started: int = 0
    finished: int = 0
    attempts: int = 0
    past: int = 0
    """How many runs are still to be purged."""


def read_lines(folder: Path, pattern: str) -> list[list[str]]:
    """Give the words of each line of some files.

    :param folder: Where they lie.
    :param pattern: Which.
    """
    texts = (path.read_text() for path in folder.glob(pattern))
    return [line.split() for text in texts for line in text.splitlines()]


def committed_markers(lines: t.Iterable[list[str]], rows: t.Collection[str]) -> set[str]:
    """Give the starts that must have happened.

    Where a starter does not know whether its transaction was committed, a row of the application
    tells it, that was written in the same transaction as the run.

    :param lines: What the starters wrote.
    :param rows: The markers in that table.
    """
    told = collections.defaultdict(set)
    for what, marker in lines:
        told[what].add(marker)
    unknown = told["begin"] - told["committed"] - told["rolled_back"]
    return told["committed"] | (unknown & set(rows))


class Reader:
    """Reads the database of a storm.

    :param place: The storm.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = Path(place.folder)
        self.app = make_app(place)
        self.engine = sa.create_engine(place.database, poolclass=NullPool)
        self.counts = Counts()

    def refresh(self) -> bool:
        """Count; tell whether the database answered."""
        with contextlib.suppress(SQLAlchemyError), self.engine.connect() as connection:
            started = connection.execute(sa.select(StormStart.id)).all()
            finished = connection.execute(self._finished()).all()
            notes = self.folder / "attempts"
            attempts = notes.read_bytes().count(b"attempt") if notes.exists() else 0
            past = connection.execute(sa.select(SequenceRun.id).where(IS_PAST)).all()
            self.counts = Counts(len(started), len(finished), attempts, len(past))
            return True
        return False

    def _finished(self) -> sa.Select[t.Any]:
        if self.place.options.peer:
            return sa.select(StormEffect.id).where(StormEffect.step == STEPS)
        return sa.select(SequenceRun.id).where(SequenceRun.status == Status.FINISHED, ~IS_PAST)

    def read(self) -> Ledger:
        """Give all that is known."""
        ledger = Ledger()
        for kind, marker, step in read_lines(self.folder, "attempts"):
            counter = ledger.attempts if kind == "attempt" else ledger.raised
            counter[marker, int(step)] += 1
        with self.app.app_context():
            starts = list(db.session.scalars(sa.select(StormStart.marker)))
            rows = list(db.session.scalars(sa.select(StormEffect).order_by(StormEffect.id)))
            ledger.effects = [Effect(row.marker, row.step, row.loop, row.value) for row in rows]
            if self.place.options.peer:
                last = {row.marker: Ending(row.value, row.at) for row in rows if row.step == STEPS}
                ledger.endings = last
                starts = []  # it sends no chain where it does not know
            else:
                self._read_runs(ledger)
        ledger.committed = committed_markers(read_lines(self.folder, "starts-*"), starts)
        return ledger

    def _read_runs(self, ledger: Ledger) -> None:
        markers: dict[int | None, str] = {}
        for run in db.session.scalars(sa.select(SequenceRun).where(~IS_PAST)):
            markers[run.id] = run.data["marker"]
            ledger.rows.append(run.data["marker"])
            if run.status is Status.FINISHED:
                assert run.finished_at is not None
                ending = Ending(run.data["value"], run.finished_at.timestamp())
                ledger.endings[run.data["marker"]] = ending
        ledger.papers = [
            Paper(row.marker, row.step, row.loop, markers.get(row.run_id))
            for row in db.session.scalars(sa.select(StormPaper))
        ]
        notes = read_lines(self.folder, NOTES)
        rows = [paper.marker for paper in ledger.papers]
        ledger.strangers = committed_markers(notes, rows)

    def standing(self) -> list[str]:
        """Tell of the runs that have not finished, a line each."""
        if self.place.options.peer:
            return []
        with self.app.app_context():
            query = sa.select(SequenceRun).where(SequenceRun.status != Status.FINISHED)
            return [
                f"{run.data['marker']} {run.status} at {run.step}: {run.error}"
                for run in db.session.scalars(query)
            ]

    def start_times(self) -> list[float]:
        """Give when each run was started."""
        with self.app.app_context():
            return list(db.session.scalars(sa.select(StormStart.at)))
