"""procrastinate: each job defers the next one."""

from __future__ import annotations

import os
import typing as t

import procrastinate
import sqlalchemy as sa

from benchmarks.contender import PLACE, Contender, Place


def make_app(place: Place) -> procrastinate.App:
    """Make the app, as procrastinate's quickstart does."""
    url = sa.make_url(place.database).set(drivername="postgresql")
    conninfo = url.render_as_string(hide_password=False)
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))

    @app.task(name="advance", queue="bench")
    async def advance(number: int, left: int) -> None:
        if place.rows:
            await app.connector.execute_query_async(
                "insert into bench_rows (number) values (%(number)s)", number=number
            )
        if left > 1:
            await advance.defer_async(number=number + 1, left=left - 1)
        else:
            place.note_end()

    return app


if PLACE in os.environ:  # in a worker
    app = make_app(Place.of_worker())


class Procrastinate(Contender):
    """As many worker processes as ours."""

    name = "procrastinate"
    needs = frozenset({"postgresql"})
    configuration = (
        "N processes of `procrastinate worker --concurrency 10` (asynchronous tasks, LISTEN/NOTIFY"
        " on), PsycopgConnector; a task defers the next one as its last act."
    )

    def prepare(self) -> None:
        super().prepare()
        self.app = make_app(self.place)
        self.sync: t.Any = self.app.with_connector(self.app.connector.get_sync_connector())
        with self.sync.open():
            self.sync.schema_manager.apply_schema()

    def commands(self) -> list[list[str]]:
        app = "--app=benchmarks.procrastinate_peer.app"
        options = ["-q", "bench", "--concurrency", "10"]
        one = ["-m", "procrastinate", app, "worker", *options]
        return [one] * self.place.processes

    def begin(self, count: int, steps: int) -> None:
        with self.sync.open():
            for _ in range(count):
                self.sync.configure_task("advance", queue="bench").defer(number=0, left=steps)
