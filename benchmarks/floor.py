"""The floor: bare connections that commit once a step."""

from __future__ import annotations

import contextlib
import multiprocessing
import typing as t

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from benchmarks.contender import Contender, Place


def work(place: Place, runs: int, steps: int, parameter: str) -> None:
    """Update one row and commit for each step; with rows insert one, too."""
    engine = sa.create_engine(place.database, poolclass=NullPool)
    update = f"update bench_floor set number = {parameter} where id = {parameter}"
    insert = f"insert into bench_rows (number) values ({parameter})"
    with contextlib.closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        for _ in range(runs):
            cursor.execute(f"insert into bench_floor (number) values ({parameter})", (0,))
            cursor.execute("select max(id) from bench_floor")
            row = cursor.fetchone()
            connection.commit()
            for number in range(steps):
                if place.rows:
                    cursor.execute(insert, (number,))
                cursor.execute(update, (number + 1, t.cast(tuple[int], row)[0]))
                connection.commit()
            place.note_end()


class Floor(Contender):
    """As many processes, each with one connection of the driver's own."""

    name = "bare connections"
    configuration = "N processes with one connection each: per step one UPDATE (and INSERT), COMMIT"

    def prepare(self) -> None:
        super().prepare()
        table = sa.Table(
            "bench_floor",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("number", sa.Integer, nullable=False),
        )
        engine = sa.create_engine(self.place.database, poolclass=NullPool)
        table.create(engine, checkfirst=True)
        self.parameter = "?" if engine.dialect.name == "sqlite" else "%s"

    def commands(self) -> list[list[str]]:
        return []

    def begin(self, count: int, steps: int) -> None:
        context = multiprocessing.get_context("fork")
        shares = [count // self.place.processes] * self.place.processes
        shares[0] += count % self.place.processes
        workers = [
            context.Process(target=work, args=(self.place, share, steps, self.parameter))
            for share in shares
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
