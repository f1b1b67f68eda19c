"""The database and the broker of a storm, private to it, and what can be done to them."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import redis
import sqlalchemy as sa
from kombu import Connection, Queue

from tests.support import services
from tests.support.hosts import Host
from tests.support.servers import (
    MariaDBServer,
    PostgreSQLServer,
    RabbitMQServer,
    RedisServer,
    Server,
)

LOCK_SECONDS = 7.0
"""How long a stranger locks a SQLite file; the driver waits for 5."""
QUEUE = "celery"


@dataclass(frozen=True)
class Database:
    """A database."""

    url: str
    """Its address here."""
    restart: t.Callable[[], object]
    """Kill it and start it again; a SQLite file is locked by a stranger instead."""
    remote_url: str
    """Its address for those who take part in the storm."""
    server: Server | None = None


@dataclass(frozen=True)
class Broker:
    """A broker."""

    celery: dict[str, t.Any] | None
    """Celery's settings."""
    flush: t.Callable[[], object]
    """Throw away what waits in it."""
    restart: t.Callable[[], object]
    """Kill it and start it again; the embedded one has no process, and is flushed."""
    server: Server | None = None


@contextlib.contextmanager
def open_database(kind: str, folder: Path, host: Host | None) -> t.Iterator[Database]:
    """Start a database.

    :param kind: ``postgresql``, ``mariadb`` or ``sqlite``.
    :param folder: Where the file lies.
    :param host: The host that it runs on, if not this one.
    """
    if kind == "sqlite":
        path = folder / "storm.sqlite"
        yield Database(f"sqlite:///{path}", lambda: _lock(path), f"sqlite:///{path}")
        return
    server = PostgreSQLServer(host) if kind == "postgresql" else MariaDBServer(host)
    with server:
        url = services.create_database(server.url)
        remote = services.database_at(server.remote_url, str(sa.make_url(url).database))
        yield Database(url, server.restart, remote, server)


@contextlib.contextmanager
def open_broker(kind: str, folder: Path, host: Host | None) -> t.Iterator[Broker]:
    """Start a broker.

    :param kind: ``redis``, ``rabbitmq`` or ``embedded``.
    :param folder: The storm's.
    :param host: The host that it runs on, if not this one.
    """
    if kind == "embedded":
        yield Broker(None, lambda: _flush_files(folder), lambda: _flush_files(folder))
        return
    server: Server = RedisServer(host) if kind == "redis" else RabbitMQServer(host)
    flush = _flush_redis if kind == "redis" else _flush_rabbitmq
    with server:
        celery = {
            "broker_url": server.remote_url,
            "task_default_queue": QUEUE,
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
        }
        yield Broker(celery, lambda: flush(server.url), server.restart, server)


def _lock(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as stranger:
        stranger.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCK_SECONDS)
        stranger.execute("ROLLBACK")


def _flush_files(folder: Path) -> None:
    for path in (folder / "instance" / "sequence_broker" / "messages").rglob("*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _flush_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()


def _flush_rabbitmq(url: str) -> None:
    with Connection(url) as connection:
        Queue(QUEUE, channel=connection.default_channel).purge()
