"""What a storm was asked for, and where it takes place; every process of it reads this."""

from __future__ import annotations

import functools
import json
import os
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "FLASK_SEQUENCE_STORM"
"""The environment variable that names the folder of a storm."""
BEGAN = "began"
"""The file that says since when, as ``time.time()`` tells it."""


@dataclass(frozen=True)
class Options:
    """What to do; all times are seconds."""

    runs: int = 200
    seconds: float = 30.0
    """How long faults happen."""
    kill_every: float = 1.0
    flushes: int = 2
    broker_restarts: int = 0
    database_restarts: int = 1
    seed: int = 1
    database: str = "postgresql"
    broker: str = "redis"
    lease: float = 10.0
    sweep: float = 2.0
    workers: int = 3
    concurrency: int = 4
    starters: int = 2
    burst: float = 1.0
    pool: str = "prefork"
    step_seconds: float = 0.04
    """How long a step takes, on average."""
    goal: float = 30.0
    """In how many seconds after the last fault all must be done."""
    settle: float = 60.0
    """How long to wait for it."""
    partition: bool = False
    """Whether it takes place on hosts of its own, whose links are cut."""
    cut_every: float = 10.0
    strangers: bool = True
    """Whether others refer to runs in transactions that stay open, on a server."""
    past: int = 100
    """How many runs, where there are strangers, are purged meanwhile."""
    lock_wait: int = 0
    """After how many seconds the application's statements wait no longer for a lock of others."""
    peer: str | None = None
    acks_late: bool = False

    @property
    def has_strangers(self) -> bool:
        """Whether there are strangers: SQLite has one writer only, and the peer no runs."""
        return self.strangers and self.database != "sqlite" and self.peer is None


@dataclass(frozen=True)
class Place:
    """The storm, for the processes that take part in it."""

    folder: str
    database: str
    celery: dict[str, t.Any] | None
    began: float
    """When faults and starts began, as ``time.time()`` tells it; 0 before."""
    options: Options

    def save(self) -> None:
        """Write it down for the other processes."""
        (Path(self.folder) / "place.json").write_text(json.dumps(asdict(self)))

    @property
    def environment(self) -> dict[str, str]:
        """What leads a process here."""
        return {FOLDER: self.folder}

    @property
    def settings(self) -> dict[str, t.Any]:
        """The settings of flask-sequence."""
        return {
            "SEQUENCE_IMPORTS": ("tests.storm.sequences",),
            "SEQUENCE_LEASE_SECONDS": self.options.lease,
            "SEQUENCE_SWEEP_SECONDS": self.options.sweep or None,
            "SEQUENCE_BURST_SECONDS": self.options.burst,
        }

    def note(self, kind: str, marker: str, step: int) -> None:
        """Append a line to the attempts, which no rollback undoes.

        :param kind: ``attempt``, or ``raised`` for a failure on purpose.
        :param marker: Which run.
        :param step: The number of its step.
        """
        path = Path(self.folder) / "attempts"
        file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, f"{kind} {marker} {step}\n".encode())
        os.close(file)


@functools.cache
def this_place() -> Place:
    """Give the storm that this process takes part in."""
    saved = json.loads((Path(os.environ[FOLDER]) / "place.json").read_text())
    return Place(**{**saved, "options": Options(**saved["options"])})
