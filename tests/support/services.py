"""The databases and brokers that tests use where they answer, each test with a part of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa
from kombu import Connection, Queue
from sqlalchemy.pool import NullPool

POSTGRESQL = os.environ.get(
    "FLASK_SEQUENCE_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
MARIADB = os.environ.get("FLASK_SEQUENCE_MARIADB", "mariadb+pymysql://root@127.0.0.1:3306/")
REDIS = os.environ.get("FLASK_SEQUENCE_REDIS", "redis://127.0.0.1:6379/0")
RABBITMQ = os.environ.get("FLASK_SEQUENCE_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")

REDIS_MARK = "flask-sequence-tests"
REDIS_CLAIM = """
if redis.call('dbsize') > 0 and redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('flushdb')
redis.call('set', KEYS[1], ARGV[2])
return 1
"""

_numbers = itertools.count(1)


def require(url: str) -> None:
    """Skip the test if the service does not answer; with ``CI=true``, fail it.

    :param url: One of the addresses of this module.
    """
    if problem := _problem(url):
        if os.environ.get("CI") == "true":
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)


def is_answering(url: str) -> bool:
    """Tell whether the service answers now.

    :param url: The address of a database or broker.
    """
    return _problem.__wrapped__(url) is None


@functools.cache
def _problem(url: str) -> str | None:
    scheme = urlsplit(url).scheme
    try:
        if scheme in {"redis", "rediss", "unix"}:
            with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
                client.ping()
        elif scheme == "amqp":
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
        else:
            with _administration(url, read_timeout=2) as database:
                database.scalar(sa.select(1))
    except Exception as error:
        return f"{scheme} at {urlsplit(url).hostname} does not answer: {error}"
    return None


def unique_name() -> str:
    """Give a name that no other test, of this process or another, uses."""
    return f"fs_{os.getpid()}_{next(_numbers)}"


def _administration(url: str, *, read_timeout: int = 30) -> sa.Connection:
    arguments = {"connect_timeout": 2}
    if sa.make_url(url).get_driver_name() == "pymysql":
        arguments["read_timeout"] = read_timeout  # connecting to a paused server reads, too
    engine = sa.create_engine(url, poolclass=NullPool, connect_args=arguments)
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def database_at(url: str, name: str) -> str:
    """Give the address of another database of the same server.

    :param url: The server's address.
    :param name: The name of the database.
    """
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def create_database(url: str) -> str:
    """Make a database with a unique name, and return its address.

    :param url: The server's address.
    """
    name = unique_name()
    is_postgresql = sa.make_url(url).get_backend_name() == "postgresql"
    options = "" if is_postgresql else " CHARACTER SET utf8mb4"
    with _administration(url) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}{options}")
    return database_at(url, name)


def drop_database(url: str, database_url: str) -> None:
    """Drop a database, and end the connections to it first.

    :param url: The server's address.
    :param database_url: The address of the database.
    """
    name = sa.make_url(database_url).database
    with _administration(url) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            return
        # A transaction left open would hold the table's lock, and DROP wait for it for a day.
        listed = "SELECT id FROM information_schema.processlist WHERE db = %s"
        for (number,) in connection.exec_driver_sql(listed, (name,)).all():
            with contextlib.suppress(sa.exc.OperationalError):  # it has ended by itself
                connection.exec_driver_sql(f"KILL {number}")
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")


@dataclass
class Broker:
    """A broker, or a part of one, that no other test uses."""

    kind: t.Literal["embedded", "redis", "rabbitmq"]
    url: str | None
    """The value of ``broker_url``; None for the embedded broker."""
    queue: str
    """The default queue."""
    _names: list[str] = field(default_factory=list)

    def queue_named(self, name: str) -> str:
        """Give the name of another queue for this test only.

        :param name: What to call it.
        """
        queue = name if self.kind == "embedded" else f"{self.queue}_{name}"
        self._names.append(queue)
        return queue

    def config(self, **more: t.Any) -> dict[str, t.Any] | None:
        """Give the value of ``app.config["CELERY"]``; None for the embedded broker.

        :param more: More settings of Celery.
        """
        if self.url is None and not more:
            return None
        if self.url is None:
            return more
        return {"broker_url": self.url, "task_default_queue": self.queue, **more}

    def clear(self) -> None:
        """Delete what the test left on the broker."""
        if self.kind == "redis":
            with redis.Redis.from_url(str(self.url)) as client:
                client.flushdb()
        elif self.kind == "rabbitmq":
            with Connection(str(self.url)) as connection:
                for name in (self.queue, *self._names):
                    Queue(name, channel=connection.default_channel).delete()


def make_broker(kind: str) -> Broker:
    """Give a broker for one test; its queues are empty.

    :param kind: ``embedded``, ``redis`` or ``rabbitmq``.
    """
    if kind == "embedded":
        return Broker("embedded", None, "celery")
    if kind == "redis":
        require(REDIS)
        return Broker("redis", _claim_redis_database(), unique_name())
    require(RABBITMQ)
    return Broker("rabbitmq", RABBITMQ, unique_name())


def _claim_redis_database() -> str:
    mine = f"{socket.gethostname()}:{os.getpid()}"
    for number in range(1, 16):
        url = urlsplit(REDIS)._replace(path=f"/{number}").geturl()
        with redis.Redis.from_url(url) as client:
            owner = t.cast("bytes | None", client.get(REDIS_MARK)) or b""
            dead = owner.decode() if _has_ended(owner.decode()) else "nobody"
            if client.eval(REDIS_CLAIM, 1, REDIS_MARK, dead, mine):
                return url
    return str(pytest.fail("Redis has no empty database among 1 to 15.", pytrace=False))


def _has_ended(owner: str) -> bool:
    host, _, number = owner.rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
