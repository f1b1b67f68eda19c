"""What is measured: a contender, its worker processes, and how the end of its runs is seen."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support import services
from tests.support.waiting import wait_until

ROOT = Path(__file__).parent.parent
LONGEST_SECONDS = 900.0
"""The most that one measurement may take."""
Show = t.Callable[[str], None]
"""Shows how far a measurement is."""
PLACE = "BENCH_PLACE"
"""The environment variable in which a worker finds its place."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a contender works.

    :param database: The address of an empty database of its own, for SQLAlchemy.
    :param broker: Celery's settings; None: the embedded broker.
    :param folder: An empty folder of its own.
    :param processes: How many worker processes there are.
    :param rows: Whether a step inserts a row; else it changes the data only.
    :param pool: Celery's pool.
    :param settings: ``SEQUENCE_*`` settings that are not the defaults.
    """

    database: str
    broker: dict[str, t.Any] | None
    folder: str
    processes: int
    rows: bool
    pool: str = "prefork"
    settings: dict[str, t.Any] = field(default_factory=dict)

    @classmethod
    def of_worker(cls) -> t.Self:
        """Read it in a worker process."""
        return cls(**json.loads(os.environ[PLACE]))

    @property
    def worker_options(self) -> list[str]:
        """The options of a Celery worker; on RabbitMQ each needs a name of its own."""
        name = f"{Path(self.folder).name}@%h"
        options = ["-c", str(self.processes), "--pool", self.pool]
        return [*options, "-n", name, "--loglevel", "WARNING"]

    @property
    def env(self) -> dict[str, str]:
        """What a worker process needs in its environment."""
        return {**os.environ, "PYTHONPATH": str(ROOT), PLACE: json.dumps(asdict(self))}

    def note_end(self) -> None:
        """Note that one run has come to its last step: the same, cheap way for each contender."""
        self._append("ended", b".")

    def note_begin(self) -> None:
        """Note when a run has come to its first step, by the clock that all processes share."""
        self._append("begun", f"{time.monotonic()}\n".encode())

    def _append(self, name: str, text: bytes) -> None:
        file = os.open(Path(self.folder) / name, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, text)
        os.close(file)

    @property
    def ended(self) -> int:
        """How many runs have come to their last step."""
        path = Path(self.folder) / "ended"
        return path.stat().st_size if path.exists() else 0

    @property
    def begun(self) -> list[float]:
        """When runs have come to their first step, in seconds."""
        path = Path(self.folder) / "begun"
        return [float(line) for line in path.read_text().split()] if path.exists() else []


SERVERS = {"postgresql": services.POSTGRESQL, "mariadb": services.MARIADB}
"""The databases that are servers; SQLite is a file in the place's folder."""


@contextlib.contextmanager
def new_place(
    database: str,
    broker: str,
    *,
    processes: int,
    rows: bool = False,
    pool: str = "prefork",
    settings: dict[str, t.Any] | None = None,
) -> t.Iterator[Place]:
    """Give an empty database, an empty broker and an empty folder.

    :param database: The kind of the database.
    :param broker: The kind of the broker.
    :param processes: How many worker processes there are to be.
    :param rows: Whether a step inserts a row.
    :param pool: Celery's pool.
    :param settings: ``SEQUENCE_*`` settings that are not the defaults.
    """
    server = SERVERS.get(database)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        url = services.create_database(server) if server else f"sqlite:///{folder}/bench.sqlite"
        made = services.make_broker(broker)
        try:
            yield Place(
                database=url,
                broker=made.config(),
                folder=folder,
                processes=processes,
                rows=rows,
                pool=pool,
                settings=settings or {},
            )
        finally:
            made.clear()
            if server:
                services.drop_database(server, url)


metadata = sa.MetaData()
bench_rows = sa.Table(
    "bench_rows",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""What a row step inserts into."""


class Contender(abc.ABC):
    """Something that performs runs of many steps, in worker processes of its own.

    :param place: Where it works.
    """

    name: t.ClassVar[str]
    needs: t.ClassVar[frozenset[str]] = frozenset({"postgresql", "mariadb", "sqlite"})
    """The databases that it works with."""
    scenarios: t.ClassVar[frozenset[str]] = frozenset({"empty", "rows"})
    """The work that it can do."""
    configuration: t.ClassVar[str]
    """How it is set up, for the report."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._processes: list[subprocess.Popen[bytes]] = []

    @abc.abstractmethod
    def commands(self) -> list[list[str]]:
        """Give the command of each worker, without the interpreter."""

    def prepare(self) -> None:
        """Create what must be there before the workers start."""
        engine = sa.create_engine(self.place.database, poolclass=NullPool)
        metadata.create_all(engine)

    @abc.abstractmethod
    def begin(self, count: int, steps: int) -> None:
        """Start runs, each in a transaction of its own as requests would."""

    @property
    def inserts_rows(self) -> bool:
        """Whether each of its steps inserts a row."""
        return self.place.rows

    @property
    def env(self) -> dict[str, str]:
        """What its workers need in their environment."""
        return self.place.env

    def is_done(self, count: int) -> bool:
        """Tell whether all runs that were begun have ended, for one that has a way to know."""
        return True

    def __enter__(self) -> t.Self:
        self.prepare()
        log = open(Path(self.place.folder) / "workers.log", "ab")
        for command in self.commands():
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=self.env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return self

    def __exit__(self, *exception: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                if process.poll() is None:
                    os.killpg(process.pid, number)
            for process in self._processes:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    continue

    def measure(self, count: int, steps: int) -> float:
        """Perform runs, and give the seconds from the first start to the end of the last.

        :param count: How many runs.
        :param steps: How many steps each has.
        """
        before = self.place.ended
        began = time.perf_counter()
        self.begin(count, steps)
        wait_until(
            lambda: self.place.ended >= before + count and self.is_done(count),
            LONGEST_SECONDS,
            interval=0.005,
        )
        seconds = time.perf_counter() - began
        assert self.place.ended == before + count
        return seconds

    def rows(self) -> int:
        """Count the rows that were inserted."""
        engine = sa.create_engine(self.place.database, poolclass=NullPool)
        with engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(bench_rows)) or 0
