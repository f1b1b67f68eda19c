"""DBOS: workflows on a queue, whose steps are recorded in PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import typing as t

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, SQLAlchemyDatasource

from benchmarks.contender import Contender, Place, bench_rows

QUEUE = "bench"


def serve(executor: str) -> None:
    """Run one worker process until it is told to end."""
    place = Place.of_worker()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": place.database,
            "executor_id": executor,
            "application_version": "1",
            "log_level": "WARNING",
        }
    )
    datasource: t.Any = SQLAlchemyDatasource.create(place.database) if place.rows else None

    @DBOS.step()
    def count_up(number: int) -> int:
        return number + 1

    def insert(number: int) -> int:
        datasource.sql_session().execute(sa.insert(bench_rows).values(number=number))
        return number + 1

    work = (
        datasource.transaction(isolation_level="READ COMMITTED")(insert) if place.rows else count_up
    )

    @DBOS.workflow(name="bench")
    def bench(steps: int) -> int:
        number = 0
        for _ in range(steps):
            number = work(number)
        place.note_end()
        return number

    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=10, polling_interval_sec=0.1)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    DBOS.destroy()


class Dbos(Contender):
    """As many processes as ours, each an executor of its own."""

    name = "DBOS"
    needs = frozenset({"postgresql"})
    configuration = (
        "N processes, each with its executor_id; a queue with worker_concurrency = 10, polled each"
        " 0.1 s (1 s by default); @DBOS.step, with rows the datasource's transaction at READ"
        " COMMITTED (SERIALIZABLE by default)."
    )

    def prepare(self) -> None:
        super().prepare()
        command = (sys.executable, "-m", "dbos.cli.cli", "migrate", "-s", self.place.database)
        subprocess.run(command, check=True, capture_output=True)

    def commands(self) -> list[list[str]]:
        return [["-m", "benchmarks.dbos_peer", str(n)] for n in range(self.place.processes)]

    def begin(self, count: int, steps: int) -> None:
        client = DBOSClient(system_database_url=self.place.database)
        for _ in range(count):
            client.enqueue({"queue_name": QUEUE, "workflow_name": "bench"}, steps)
        client.destroy()


if __name__ == "__main__":
    serve(sys.argv[1])
