"""Several applications on one broker, and on one database."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from flask_sequence.broker import embedded_config
from tests.support.services import Broker, make_broker
from tests.support.waiting import wait_until
from tests.support.workers import Worker, write_module

MODULE = """
    from flask_sequence import BaseSequence, step
    from tests.support.application import Effect, create_app, db

    @step
    def note(data):
        db.session.add(Effect(note="{name}"))

    @step
    def note_again(data):
        db.session.add(Effect(note="{name}"))

    class {name}(BaseSequence):
        steps = (note, note_again)

    app = create_app({url!r}, {celery!r}, instance_path={instance!r}, **{settings!r})

    def start():
        with app.app_context():
            for _ in range(5):
                {name}.start()
            db.session.commit()
"""


@pytest.fixture
def redis() -> t.Iterator[Broker]:
    """The broker of both applications."""
    broker = make_broker("redis")
    yield broker
    broker.clear()


@pytest.fixture
def start_both(
    tmp_path: Path, redis: Broker, start_worker: t.Callable[..., Worker]
) -> t.Callable[..., list[Worker]]:
    """The function that starts workers and runs of two applications, and gives the workers."""

    def start(urls: t.Mapping[str, str], *, own_queues: bool) -> list[Worker]:
        workers = []
        for name, url in urls.items():
            queue = redis.queue_named(name) if own_queues else redis.queue
            settings = {"SEQUENCE_SWEEP_SECONDS": 0.5, "SEQUENCE_QUEUE": queue}
            place = {"celery": redis.config(), "instance": str(tmp_path / name)}
            source = MODULE.format(name=name, url=url, settings=settings, **place)
            module = write_module(tmp_path, source, name.lower())
            workers.append(start_worker(module, "-c", "1", "-Q", queue, "-n", f"{name}@%h"))
        for worker, name in zip(workers, urls, strict=True):
            command = (sys.executable, "-c", f"import {name.lower()} as it; it.start()")
            subprocess.run(command, cwd=tmp_path, env=worker.env, check=True)
        return workers

    return start


def read(url: str, statement: str) -> list[t.Any]:
    with sa.create_engine(url, poolclass=NullPool).connect() as connection:
        return list(connection.scalars(sa.text(statement)))


STATUSES = "SELECT status FROM sequence_runs"
NOTES = "SELECT note FROM effects ORDER BY note"


def test_on_one_database_with_a_queue_each(
    start_both: t.Callable[..., list[Worker]], postgresql_url: str
) -> None:
    workers = start_both({"Shop": postgresql_url, "Board": postgresql_url}, own_queues=True)
    wait_until(lambda: read(postgresql_url, STATUSES) == ["finished"] * 10, 30)
    assert read(postgresql_url, NOTES) == ["Board"] * 10 + ["Shop"] * 10
    for worker in workers:
        assert "not known here" not in worker.log
        assert "blocked" not in worker.log


def test_on_one_database_and_one_queue(
    start_both: t.Callable[..., list[Worker]], postgresql_url: str
) -> None:
    start_both({"Shop": postgresql_url, "Board": postgresql_url}, own_queues=False)
    wait_until(lambda: read(postgresql_url, STATUSES) == ["finished"] * 10, 60)
    assert read(postgresql_url, NOTES) == ["Board"] * 10 + ["Shop"] * 10


def test_on_one_queue_with_a_database_each(
    start_both: t.Callable[..., list[Worker]], postgresql_url: str, mariadb_url: str
) -> None:
    urls = {"Shop": postgresql_url, "Board": mariadb_url}
    start_both(urls, own_queues=False)
    finished = [["finished"] * 5] * 2
    wait_until(lambda: [read(url, STATUSES) for url in urls.values()] == finished, 60)
    assert [read(url, NOTES) for url in urls.values()] == [[name] * 10 for name in urls]


SHARING = """
    from celery import Celery
    from flask_sequence import BaseSequence, step
    from tests.support.application import Effect, create_app, db

    @step
    def note(data):
        db.session.add(Effect(note=data["note"]))

    class Shop(BaseSequence):
        steps = (note,)

    celery_app = Celery("shared")
    celery_app.config_from_object({celery!r})

    def create(name):
        return create_app(f"sqlite:///{folder}/{{name}}.sqlite", celery_app,
            instance_path="{folder}/instance", SEQUENCE_SWEEP_SECONDS=0.5)

    first, second = create("first"), create("{second}")

    def start():
        with first.app_context():
            db.create_all()
            Shop.start(note="first")
            db.session.commit()
"""


def sharing(folder: Path, *, second: str = "second") -> str:
    """Write a module with two applications of one Celery application, and give its name."""
    config = embedded_config(folder / "broker")
    source = SHARING.format(folder=folder, second=second, celery=config)
    return write_module(folder, source, "sharing")


def start_first(folder: Path, worker: Worker) -> None:
    command = (sys.executable, "-c", "import sharing; sharing.start()")
    subprocess.run(command, cwd=folder, env=worker.env, check=True)


def test_the_named_one_of_two_that_share_a_celery_application(
    tmp_path: Path, start_worker: t.Callable[..., Worker]
) -> None:
    start_first(tmp_path, Worker(tmp_path, sharing(tmp_path)))
    start_worker("sharing:first", "-c", "1")
    wait_until(lambda: read(f"sqlite:///{tmp_path}/first.sqlite", STATUSES) == ["finished"], 30)


def test_celerys_own_command_refuses_two_that_share_a_celery_application(tmp_path: Path) -> None:
    with Worker(tmp_path, sharing(tmp_path), celery=True).launch() as worker:
        assert worker.wait(30) == 1
        assert "'shared' belongs to several Flask applications" in worker.log
        assert f"sqlite:///{tmp_path}/first.sqlite and sqlite:///{tmp_path}/second" in worker.log
        assert "Traceback" not in worker.log


def test_celerys_own_command_takes_a_factory_that_was_called_twice(
    tmp_path: Path, start_worker: t.Callable[..., Worker]
) -> None:
    start_first(tmp_path, Worker(tmp_path, sharing(tmp_path, second="first")))
    start_worker("sharing", "-c", "1", celery=True)
    wait_until(lambda: read(f"sqlite:///{tmp_path}/first.sqlite", STATUSES) == ["finished"], 30)
