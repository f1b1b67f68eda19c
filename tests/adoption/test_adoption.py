"""Applications that did not know this library take it up, each in a few lines.

Each is a folder here: `before` as it was, and `after` with the files that are changed or added.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support import services
from tests.support.waiting import wait_until
from tests.support.workers import OPTIONS, Worker

if t.TYPE_CHECKING:
    from tests.support.services import Broker

HERE = Path(__file__).parent
RUNS = 4


@dataclass(frozen=True)
class Application:
    """One of the applications, and the commands of its own."""

    name: str
    flask: str
    """What `flask --app` names."""
    celery: str
    """What `celery -A` names."""
    table: str
    url: str
    """Where a row is created that the application's own task works on."""
    make: str
    """What makes the application in a web process."""


APPLICATIONS = [
    Application(
        name="global_celery",
        flask="notices",
        celery="notices.celery",
        table="notice",
        url="/notices",
        make="from notices import app",
    ),
    Application(
        name="second_app",
        flask="board",
        celery="board.tasks.celery",
        table="post",
        url="/posts",
        make="from board import create_app; app = create_app()",
    ),
    Application(
        name="flask_alembic",
        flask="ledger",
        celery="make_celery",
        table="entry",
        url="/entries",
        make="from ledger import create_app; app = create_app()",
    ),
]


class Copy:
    """A copy of an application that is at work.

    :param application: The application.
    :param folder: Where to put it.
    :param database_url: Its database.
    :param broker_url: Its broker.
    """

    def __init__(
        self, application: Application, folder: Path, database_url: str, broker_url: str
    ) -> None:
        self.application = application
        self.folder = folder
        self.engine = sa.create_engine(database_url, poolclass=NullPool)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FLASK_")}
        self.env = {
            **kept,
            "DATABASE_URL": database_url,
            "BROKER_URL": broker_url,
            "FLASK_SEQUENCE_LEASE_SECONDS": "3",
            "FLASK_SEQUENCE_SWEEP_SECONDS": "0.5",
        }
        self.put("before")

    def put(self, side: str) -> None:
        """Copy the files of one side over what is there."""
        shutil.copytree(HERE / self.application.name / side, self.folder, dirs_exist_ok=True)

    def python(self, *arguments: str) -> str:
        """Run Python in it, and give what it printed."""
        done = subprocess.run(
            (sys.executable, *arguments),
            cwd=self.folder,
            env={**self.env, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def flask(self, *arguments: str) -> str:
        """Run a command of `flask`."""
        return self.python("-m", "flask", "--app", self.application.flask, *arguments)

    def worker(self, *start: str, seconds: int = 0) -> Worker:
        """Make a worker that is started by a command, and whose second steps take so long."""
        worker = Worker(self.folder, "", env={**self.env, "TRANSLATION_SECONDS": str(seconds)})
        worker.command = [sys.executable, "-m", *start, "-c", "2", *OPTIONS]
        return worker

    def post(self, url: str, *texts: str) -> None:
        """Send forms, as a web process gets them."""
        requests = f"[app.test_client().post({url!r}, data={{'text': x}}) for x in {texts!r}]"
        source = f"{self.application.make}\nfor answer in {requests}: print(answer.status)"
        told = self.python("-W", "error::RuntimeWarning", "-c", source)
        assert told.count("20") == len(texts), told

    def read(self, statement: str) -> t.Sequence[t.Any]:
        """Read the first column of what is committed."""
        with self.engine.connect() as connection:
            return connection.scalars(sa.text(statement)).all()


@pytest.fixture
def redis() -> t.Iterator[Broker]:
    """A broker with nothing on it."""
    broker = services.make_broker("redis")
    yield broker
    broker.clear()


@pytest.fixture(params=APPLICATIONS, ids=lambda application: application.name)
def copy(request: pytest.FixtureRequest, tmp_path: Path, redis: Broker) -> t.Iterator[Copy]:
    """Each application in turn, with a database that its own migrations have made."""
    if request.param.name == "flask_alembic":
        pytest.importorskip("flask_alembic")
    services.require(services.POSTGRESQL)
    url = services.create_database(services.POSTGRESQL)
    copy = Copy(request.param, tmp_path / "application", url, str(redis.url))
    copy.flask("db", "upgrade")
    yield copy
    services.drop_database(services.POSTGRESQL, url)


def test_it_is_taken_up(copy: Copy) -> None:
    """With few lines, by both commands for workers, across a kill, and with nothing broken."""
    application = copy.application
    copy.put("after")
    told = copy.flask("sequence", "init")
    assert "Now run: flask db upgrade" in told
    copy.flask("db", "upgrade")
    copy.flask("db", "check")

    texts = [f"text {number}" for number in range(RUNS)]
    command = ("flask", "--app", application.flask, "sequence", "worker")
    with copy.worker(*command, seconds=60) as worker:
        copy.post("/published", *texts)
        in_the_middle = "SELECT id FROM sequence_runs WHERE step = 'translate'"
        running = f"{in_the_middle} AND status = 'running'"
        wait_until(lambda: copy.read(running), 30, message=lambda: worker.log)
        worker.kill()
    assert copy.read("SELECT id FROM sequence_runs WHERE status <> 'finished'")

    with copy.worker("celery", "-A", application.celery, "worker") as worker:
        copy.post(application.url, "three own words")
        finished = "SELECT id FROM sequence_runs WHERE status = 'finished'"
        wait_until(lambda: len(copy.read(finished)) == RUNS, 60, message=lambda: worker.log)
        words = f"SELECT words FROM {application.table} WHERE words IS NOT NULL"
        wait_until(lambda: copy.read(words) == [3], message=lambda: worker.log)
        assert "Traceback" not in worker.log

    rows = copy.read(f"SELECT text FROM {application.table} WHERE words IS NULL ORDER BY text")
    expected = [f"{text}{end}" for text in texts for end in ("", " (announced)", " (translated)")]
    assert sorted(rows) == sorted(expected)
    assert " passed" in copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider")
