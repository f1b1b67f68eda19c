"""Fixtures: databases, brokers, applications and workers, each for one test only."""

from __future__ import annotations

import shutil
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support import services
from tests.support.databases import Databases
from tests.support.starts import record_published
from tests.support.stepping import Stepping
from tests.support.workers import Worker, write_module

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from flask_sequence.runtime import Nudge
    from tests.support.services import Broker

DATABASES = ("sqlite", "postgresql", "mariadb")
BROKERS = ("embedded", "redis", "rabbitmq")


def create_tables(database_url: str) -> None:
    """Create the tables of flask-sequence, and ``effects``, in an empty database."""
    from tests.support.application import create_app, db

    create_app(database_url)  # makes the tables known to the metadata; connects to nothing
    engine = sa.create_engine(database_url, poolclass=NullPool)
    db.metadatas[None].create_all(engine)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.sqlite"
    create_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_databases() -> t.Iterator[Databases]:
    """The databases with all tables on PostgreSQL."""
    services.require(services.POSTGRESQL)
    yield from _databases(services.POSTGRESQL)


@pytest.fixture(scope="session")
def mariadb_databases() -> t.Iterator[Databases]:
    """The databases with all tables on MariaDB."""
    services.require(services.MARIADB)
    yield from _databases(services.MARIADB)


def _databases(server: str) -> t.Iterator[Databases]:
    def make() -> str:
        url = services.create_database(server)
        create_tables(url)
        return url

    databases = Databases(server, make)
    yield databases
    databases.close()


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The address of a SQLite file with all tables."""
    path = shutil.copy(sqlite_template, tmp_path / "test.sqlite")
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> t.Iterator[str]:
    """The address of a PostgreSQL database with all tables."""
    url = postgresql_databases.lend()
    yield url
    postgresql_databases.take_back(url)


@pytest.fixture
def mariadb_url(mariadb_databases: Databases) -> t.Iterator[str]:
    """The address of a MariaDB database with all tables."""
    url = mariadb_databases.lend()
    yield url
    mariadb_databases.take_back(url)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of a database with all tables, on each kind of database in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[str]:
    """The address of a database without tables, on each kind of database in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite'}"
        return
    server = services.POSTGRESQL if request.param == "postgresql" else services.MARIADB
    services.require(server)
    url = services.create_database(server)
    yield url
    services.drop_database(server, url)


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> t.Iterator[Broker]:
    """A broker with empty queues of its own, of each kind in turn."""
    broker = services.make_broker(request.param)
    yield broker
    broker.clear()


@pytest.fixture
def broker_url(broker: Broker) -> str | None:
    """The address of ``broker``; None for the embedded one."""
    return broker.url


@pytest.fixture
def make_app(tmp_path: Path) -> t.Iterator[t.Callable[..., Flask]]:
    """The function that makes an application, as ``tests.support.application.create_app``.

    Its connections are closed at the end.
    """
    from tests.support.application import close_app, create_app

    apps: list[Flask] = []

    def make(database_url: str, celery: t.Any = None, **config: t.Any) -> Flask:
        config.setdefault("instance_path", tmp_path / "instance")
        apps.append(create_app(database_url, celery, **config))
        return apps[-1]

    yield make
    for app in apps:
        close_app(app)


@pytest.fixture
def app(make_app: t.Callable[..., Flask], database_url: str) -> Flask:
    """An application on each kind of database in turn, with the embedded broker."""
    return make_app(database_url)


@pytest.fixture
def start_worker(tmp_path: Path) -> t.Iterator[t.Callable[..., Worker]]:
    """The function that starts a worker process for the source of a module, and waits for it.

    The arguments are those of ``tests.support.workers.Worker`` after the folder; the first may be
    the source of the module instead of its name. What still runs at the end is killed.
    """
    started: list[Worker] = []

    def start(module: str, *options: str, **more: t.Any) -> Worker:
        if "\n" in module:
            module = write_module(tmp_path, module)
        started.append(Worker(tmp_path, module, *options, **more))
        return started[-1].start()

    yield start
    for worker in started:
        worker.kill()
        print(worker.log)


@pytest.fixture
def stepping(app: Flask) -> Stepping:
    """An application on each kind of database, whose runs are performed in place."""
    return Stepping(app)


@pytest.fixture
def sqlite_stepping(make_app: t.Callable[..., Flask], sqlite_url: str) -> Stepping:
    """The same on SQLite only."""
    return Stepping(make_app(sqlite_url))


@pytest.fixture
def postgresql_stepping(make_app: t.Callable[..., Flask], postgresql_url: str) -> Stepping:
    """The same on PostgreSQL only."""
    return Stepping(make_app(postgresql_url))


@pytest.fixture
def mariadb_stepping(make_app: t.Callable[..., Flask], mariadb_url: str) -> Stepping:
    """The same on MariaDB only."""
    return Stepping(make_app(mariadb_url))


@pytest.fixture
def published(app: Flask) -> t.Iterator[list[Nudge]]:
    """What ``app`` publishes, inside an app context of it."""
    with app.app_context():
        yield record_published(app)


@pytest.fixture
def sqlite_app(make_app: t.Callable[..., Flask], sqlite_url: str) -> t.Iterator[Flask]:
    """An application on SQLite, inside an app context of it."""
    app = make_app(sqlite_url)
    with app.app_context():
        record_published(app)
        yield app
