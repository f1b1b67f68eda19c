"""Connections whose other end goes without a word: they are noticed, and the work goes on."""

from __future__ import annotations

import contextlib
import importlib.util
import time
import typing as t
from functools import partial

import pytest

from flask_sequence import Status
from tests.conftest import create_tables
from tests.support import hosts, services
from tests.support.application import close_app, db
from tests.support.faulting import SETTINGS, FaultAsleep, FaultLasting, FaultTwo
from tests.support.servers import MariaDBServer, PostgreSQLServer, RabbitMQServer, RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import Worker, write_module
from tests.support.working import Scene

if t.TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

DRIVERS = {
    "psycopg": "postgresql+psycopg",
    "psycopg2": "postgresql+psycopg2",
    "pymysql": "mariadb+pymysql",
    "MySQLdb": "mariadb+mysqldb",
}
NOTICED_SECONDS = 30.0
SLACK = 5.0
"""The retry, and what a busy machine may add."""


class Site:
    """An application whose worker runs on one host, and its database on another."""

    def __init__(
        self,
        make_app: t.Callable[..., Flask],
        folder: Path,
        server: PostgreSQLServer | MariaDBServer,
        driver: str,
        **config: t.Any,
    ) -> None:
        self.folder = folder
        folder.mkdir()
        url = services.create_database(server.url)
        create_tables(url)
        name = services.database_at(server.remote_url, url.partition("?")[0].rpartition("/")[2])
        remote = f"{driver}://{name.partition('://')[2]}"
        settings = {**SETTINGS, "SEQUENCE_LEASE_SECONDS": 6.0, **config}
        self.scene = Scene.make(make_app, folder, url, **settings)
        self.source = self.scene.source.replace(repr(url), repr(remote))

    def start(self) -> tuple[int, int]:
        """Start a run that waits for the database, and one that does not need it meanwhile."""
        with self.scene.app.app_context():
            runs = FaultAsleep.start(), FaultLasting.start(seconds=20.0)
            db.session.commit()
            return runs[0].id, runs[1].id

    def launch(self, host: hosts.Host) -> Worker:
        """Start a worker with two slots on a host, and do not wait."""
        module = write_module(self.folder, self.source, "lost_app")
        self.worker = Worker(self.folder, module, "-c", "2", env=self.scene.env, host=host)
        return self.worker.launch()


def installed_drivers(kind: str) -> dict[str, str]:
    """Name the drivers of a kind of database that are installed."""
    found = [name for name in DRIVERS if importlib.util.find_spec(name)]
    return {name: DRIVERS[name] for name in found if DRIVERS[name].startswith(kind)}


def test_the_host_of_the_database_is_lost_in_mid_statement(
    make_app: t.Callable[..., Flask], tmp_path: Path
) -> None:
    hosts.require()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(hosts.Network("work", "db"))
        database, site_of = network["db"], partial(Site, make_app)
        postgresql = stack.enter_context(PostgreSQLServer(database))
        mariadb = stack.enter_context(MariaDBServer(database))
        sites = [
            site_of(tmp_path / name, server, driver)
            for kind, server in (("postgresql", postgresql), ("mariadb", mariadb))
            for name, driver in installed_drivers(kind).items()
        ]
        for site in sites:
            stack.enter_context(site.launch(network["work"]))
        for site in sites:
            wait_until(partial(getattr, site.worker, "is_ready"), 60, message=site.worker.log)
        ids = [site.start() for site in sites]
        for site in sites:
            for step in ("Asleep", "Lasting"):
                wait_until(partial(site.scene.attempts, step), 20, message=site.worker.log)
            close_app(site.scene.app)  # no connection of this process goes to the old servers
        database.cut()
        for site in sites:
            site.scene.open()
        postgresql.kill()
        mariadb.kill()
        database.replace()
        database.mend()
        postgresql.start()
        mariadb.start()
        back = time.monotonic()
        for site, (asleep, lasting) in zip(sites, ids, strict=True):
            left = back + NOTICED_SECONDS + SLACK - time.monotonic()
            assert site.scene.wait([asleep], left) == [Status.FINISHED], site.worker.log
            print(f"{site.folder.name}: done {time.monotonic() - back:.1f} s after the return")
            assert site.scene.wait([lasting], left) == [Status.FINISHED], site.worker.log
            assert set(site.scene.effects().values()) == {1}
            assert len(site.scene.attempts("Asleep")) == 2
            assert len(site.scene.attempts("Lasting")) == 1, site.worker.log
            assert site.worker.exit_code is None
            assert site.scene.wait(site.scene.start(FaultAsleep)) == [Status.FINISHED]


@pytest.mark.full
@pytest.mark.parametrize("kind", [RedisServer, RabbitMQServer])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_host_of_the_broker_is_lost_while_a_worker_waits(
    make_app: t.Callable[..., Flask], sqlite_url: str, tmp_path: Path, kind: t.Any, pool: str
) -> None:
    hosts.require()
    # Without remote control kombu looks after no connection of its own accord.
    celery = {"worker_enable_remote_control": False, "broker_connection_max_retries": None}
    with hosts.Network("work", "broker") as network, kind(network["broker"]) as server:
        scene = Scene.make(make_app, tmp_path, sqlite_url, **SETTINGS)
        source = scene.source.replace("None", repr({"broker_url": server.remote_url, **celery}))
        module = write_module(tmp_path, source, "lost_app")
        options = ("-c", "1", "-P", pool, "--without-heartbeat")
        with Worker(tmp_path, module, *options, env=scene.env, host=network["work"]) as worker:
            # Published by the keeper: this process does not reach the broker.
            assert scene.wait(scene.start(FaultTwo)) == [Status.FINISHED], worker.log
            network["broker"].cut()
            server.kill()
            network["broker"].replace()
            network["broker"].mend()
            server.start()
            back = time.monotonic()
            done = scene.wait(scene.start(FaultTwo), NOTICED_SECONDS + SLACK)
            assert done == [Status.FINISHED], worker.log
            print(f"done {time.monotonic() - back:.1f} s after the return")
            assert worker.exit_code is None
