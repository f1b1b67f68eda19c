"""A keeper without a thread, a worker or a broker: its duties are done one by one."""

from __future__ import annotations

import dataclasses
import typing as t
from types import SimpleNamespace

import sqlalchemy as sa
from kombu import Queue

from flask_sequence.runtime import Nudge, Runtime
from flask_sequence.worker.duties import DUTIES
from flask_sequence.worker.duties.duty import Duty
from flask_sequence.worker.keeper import Keeper


def spoil_time(connection: sa.Connection, column: str, run_id: int) -> None:
    """Write a time that the database knows and Python does not.

    :param connection: To PostgreSQL or MariaDB.
    :param column: The column of the run.
    :param run_id: The run.
    """
    value = "'-infinity'"
    if connection.dialect.name != "postgresql":
        value = "'0000-00-00'"
        connection.exec_driver_sql("SET SESSION sql_mode = ''")
    connection.exec_driver_sql(f"UPDATE sequence_runs SET {column} = {value} WHERE id = {run_id:d}")


class FakeConsumer:
    """What a keeper needs of Celery's consumer.

    :param queues: The names of the queues that it consumes.
    """

    def __init__(self, *queues: str) -> None:
        self.pool: t.Any = SimpleNamespace(_pool=None)
        self.controller = SimpleNamespace(concurrency=1)
        self.task_consumer: t.Any = SimpleNamespace(queues=[Queue(name) for name in queues])
        self.hub: t.Any = None

    def has_children(self, *pids: int) -> None:
        """Let the pool have these processes; each must be a child of this one."""
        processes = [SimpleNamespace(pid=pid) for pid in pids]
        self.pool._pool = SimpleNamespace(_pool=processes)


class FakePublisher:
    """Stands in for a publisher: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Nudge] = []
        self.waiting = 0
        """What it tells of the messages that wait in the broker."""

    def publish(self, nudges: t.Sequence[Nudge], *, rest: bool = True) -> int:
        """Keep them."""
        self.sent += nudges
        return len(nudges)

    def depth(self, queues: t.Iterable[t.Any]) -> int:
        """Tell how many messages wait."""
        return self.waiting

    def disown(self) -> None:
        """There is no connection."""


class Keeping:
    """A keeper whose duties a test does.

    :param runtime: The application's runtime; its publisher is replaced.
    :param queues: The queues of its worker.
    :param duties: What it does.
    :param is_patient: Whether it has more time than a real one: the machine may be busy.
    """

    def __init__(
        self,
        runtime: Runtime,
        *queues: str,
        duties: t.Sequence[Duty] = DUTIES,
        is_patient: bool = True,
    ) -> None:
        self._duties = {duty: duty for duty in duties}
        if is_patient:
            self._duties = {duty: dataclasses.replace(duty, seconds=60.0) for duty in duties}
        self.runtime = runtime
        if runtime.worker_id is None:
            runtime.stand_in_id = "keeping"
        self.publisher = FakePublisher()
        runtime.publisher = self.publisher
        self.consumer = FakeConsumer(*(queues or ("celery",)))
        self.keeper = Keeper(runtime, self.consumer, list(self._duties.values()))

    def do(self, duty: Duty) -> list[Nudge]:
        """Do a duty for one pass, and give what it publishes.

        :raises Exception: What keeps it from it.
        """
        before = len(self.publisher.sent)
        self.perform(duty)
        return self.publisher.sent[before:]

    def perform(self, duty: Duty) -> float | None:
        """Do a duty for one pass, and give the seconds after which it wants to go on.

        :raises Exception: What keeps it from it.
        """
        try:
            return self.keeper.perform(self._duties[duty])
        finally:
            self.keeper.post.disconnect()
