"""The embedded broker under a real worker, and the Celery app of who has none."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import subprocess
import sys
import types
import typing as t

import pytest
from celery import Celery, _state
from flask import Flask, current_app

from flask_sequence.broker import embedded
from flask_sequence.broker.transport import Transport
from flask_sequence.errors import ConfigError
from tests.support.waiting import wait_until

PROJECT = pathlib.Path(__file__).parents[2]
state: t.Any = _state


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "instance" / "sequence_broker"


@pytest.fixture(autouse=True)
def _other_celery_apps() -> t.Iterator[None]:
    default, current = state.default_app, state._tls.current_app
    state.default_app = state._tls.current_app = None
    yield
    state.default_app, state._tls.current_app = default, current


@pytest.fixture
def app(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.delenv(name, raising=False)
    return Flask("shop", instance_path=str(tmp_path / "instance"))


# ------------------------------------------------------------------ a real worker

APPLICATION = """
import pathlib
from celery import shared_task
from flask import Flask, current_app
from flask_sequence.broker import make_celery

here = pathlib.Path(__file__).parent
flask_app = Flask(__name__, instance_path=str(here / "instance"))
celery = make_celery(flask_app)

@shared_task
def note(text):
    with open(here / "notes", "a") as file:
        file.write(f"{current_app.name} {text}\\n")
"""

PUBLISH = "import sys, application; [application.note.delay(text) for text in sys.argv[1:]]"


class Site:
    """A folder with an application, and one worker of it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.queue = folder / "instance" / "sequence_broker" / "messages" / "celery"
        self.log = folder / "worker.log"
        self.environ = {
            **{key: os.environ[key] for key in os.environ if not key.startswith("CELERY_")},
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{folder}",
        }
        (folder / "application.py").write_text(APPLICATION)

    def celery(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "application", *arguments]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def publish(self, *texts: str) -> None:
        self.run(sys.executable, "-c", PUBLISH, *texts)

    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return sorted(file.read_text().splitlines()) if file.exists() else []


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def worker(site: Site) -> t.Iterator[subprocess.Popen[bytes]]:
    with site.log.open("wb") as log:
        process = subprocess.Popen(
            site.celery("worker", "-c", "2", "-l", "INFO"),
            cwd=site.folder,
            env=site.environ,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: "ready." in site.log.read_text(), 20)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_runs_tasks_survives_and_stops(
    site: Site, worker: subprocess.Popen[bytes]
) -> None:
    texts = [str(number) for number in range(30)]
    site.publish(*texts)
    wait_until(lambda: site.notes() == sorted(f"application {text}" for text in texts), 20)

    (site.queue / "0-bad.msg").write_bytes(b'{"body"')
    unreadable = site.queue.parent.parent / "unreadable"
    wait_until(lambda: (unreadable / "celery-0-bad.msg").exists(), 20)
    assert "pong" in site.run(*site.celery("inspect", "ping", "-t", "2"))

    # Renamed, since the worker goes on to write into it while it is deleted.
    site.queue.parent.parent.rename(site.folder / "deleted")
    site.publish("after the folder was deleted")
    wait_until(lambda: "application after the folder was deleted" in site.notes(), 20)
    wait_until(lambda: len(list(site.queue.parent.iterdir())) == 2, 20)
    assert "pong" in site.run(*site.celery("inspect", "ping", "-t", "2"))

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    assert "Traceback" not in site.log.read_text()
    assert os.listdir(site.queue.parent) == ["celery"]
    assert len(site.notes()) == 31


# ------------------------------------------------------------------ the Celery app


def test_a_flask_app_without_settings_gets_the_embedded_broker(
    app: Flask, folder: pathlib.Path
) -> None:
    celery = embedded.make_celery(app)
    assert app.extensions["celery"] is celery
    assert celery.main == "shop"
    assert celery.conf.task_ignore_result is True
    with celery.connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        assert connection.as_uri() == f"filesystem://{folder}/messages"
        connection.connect()
    assert folder.is_dir()


def test_its_settings_come_from_the_config(app: Flask) -> None:
    app.config["CELERY"] = {"broker_url": "redis://example.invalid", "task_default_queue": "shop"}
    celery = embedded.make_celery(app)
    assert celery.conf.broker_url == "redis://example.invalid"
    assert celery.conf.task_default_queue == "shop"
    assert celery.conf.broker_transport is None


@pytest.mark.parametrize("broker", [{}, {"BROKER_URL": "redis://example.invalid"}])
def test_old_names_may_stand_in_each_place(app: Flask, broker: dict[str, str]) -> None:
    app.config["CELERY"] = {**broker, "CELERY_DEFAULT_QUEUE": "shop"}
    app.config["CELERY_TIMEZONE"] = "Europe/Berlin"
    celery = embedded.make_celery(app)
    assert celery.conf.broker_url == broker.get("BROKER_URL", "filesystem://")
    assert celery.conf.task_default_queue == "shop"
    assert str(celery.conf.timezone) == "Europe/Berlin"


def test_celerys_own_variable_goes_before_the_embedded_broker(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://example.invalid")
    celery = embedded.make_celery(app)
    assert celery.connection_for_write().transport_cls == "redis"
    assert celery.conf.task_ignore_result is True
    embedded.warn_embedded(app)
    assert not caplog.records


@pytest.mark.parametrize(
    "config",
    [
        {"CELERY": {"broker_url": "redis://config.invalid"}},
        {"CELERY_BROKER_URL": "redis://config.invalid"},
        {},
    ],
)
def test_celerys_own_variable_goes_before_all_settings(
    app: Flask, monkeypatch: pytest.MonkeyPatch, config: dict[str, t.Any]
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://environment.invalid")
    app.config.update(config)
    celery = embedded.make_celery(app)
    assert celery.connection_for_write().hostname == "environment.invalid"
    assert celery.connection_for_read().hostname == "environment.invalid"


@pytest.mark.parametrize(
    ("config", "setting", "value"),
    [
        ({"CELERY_BROKER_URL": "redis://new.invalid"}, "broker_url", "redis://new.invalid"),
        ({"BROKER_URL": "redis://old.invalid"}, "broker_url", "redis://old.invalid"),
        ({"CELERY_DEFAULT_QUEUE": "old"}, "task_default_queue", "old"),
        ({"CELERY_TASK_DEFAULT_QUEUE": "new"}, "task_default_queue", "new"),
        ({"CELERY_BROKER_URL": None, "CELERY_ENABLED": True}, "broker_url", "filesystem://"),
        ({"S3_BUCKET": "pictures"}, "s3_bucket", None),
        (
            {
                "CELERY": {"broker_url": "redis://a.invalid"},
                "CELERY_BROKER_URL": "redis://b.invalid",
            },
            "broker_url",
            "redis://a.invalid",
        ),
        (
            {"CELERY": {"task_default_queue": "x"}, "CELERY_BROKER_URL": "redis://b.invalid"},
            "broker_url",
            "redis://b.invalid",
        ),
        ({"CELERY": "tests.broker.celeryconfig"}, "task_default_queue", "module"),
        ({"CELERY": {"task_default_queue": "x"}}, "broker_url", "filesystem://"),
        ({"CELERY": {"task_default_queue": "x"}}, "task_default_queue", "x"),
        ({"CELERY": {"CELERY_DEFAULT_QUEUE": "old"}}, "broker_url", "filesystem://"),
        ({"CELERY": {"BROKER_URL": "redis://c.invalid"}}, "broker_url", "redis://c.invalid"),
    ],
)
def test_settings_under_their_own_names_are_taken(
    app: Flask,
    config: dict[str, t.Any],
    setting: str,
    value: t.Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sys.modules["tests.broker.celeryconfig"] = module = types.ModuleType("celeryconfig")
    vars(module)["task_default_queue"] = "module"
    app.config.update(config)
    celery = embedded.make_celery(app)
    assert celery.conf[setting] == value
    embedded.warn_embedded(app)
    is_embedded = celery.conf.broker_transport is not None
    assert bool(caplog.records) is is_embedded


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("broker", "broker_url"),
        ("broker_ur", "broker_url"),
        ("BROKER_URI", "broker_url"),
        ("CELERY_BROKER_URL", "broker_url"),
        ("task_default_que", "task_default_queue"),
    ],
)
def test_a_misspelled_setting_is_told_of(
    app: Flask, name: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["CELERY"] = {name: "redis://a.invalid"}
    celery = embedded.make_celery(app)
    assert caplog.messages == [
        f"CELERY has the key {name!r}, which is not a setting of Celery and has no effect: did you"
        f" mean {meant!r}?"
    ]
    assert celery.conf.broker_url == "filesystem://"  # and not a server that nobody has named
    embedded.warn_embedded(app)
    assert "publishes through files" in caplog.text


@pytest.mark.parametrize("name", ["redbeat_redis_url", "shop_secret", "broker_url", "BROKER_URL"])
def test_a_key_of_somebody_else_is_not(
    app: Flask, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["CELERY"] = {name: "redis://a.invalid"}
    embedded.make_celery(app)
    assert caplog.messages == []


def test_an_address_is_refused_where_settings_are_expected(app: Flask) -> None:
    app.config["CELERY"] = "redis://a.invalid"
    with pytest.raises(ConfigError, match=r'write CELERY = \{"broker_url": "\.\.\."\}'):
        embedded.make_celery(app)


def test_a_task_runs_in_an_app_context_of_its_own(app: Flask) -> None:
    app.config["CELERY"] = {"task_always_eager": True, "task_store_eager_result": False}
    celery = embedded.make_celery(app)

    @celery.task
    def name() -> str:
        return current_app.name

    assert name.delay().get() == "shop"


def test_the_last_of_ours_is_celerys_default_app(app: Flask) -> None:
    first = embedded.make_celery(Flask("first"))
    assert state.get_current_app() is first
    last = embedded.make_celery(app)
    assert state.get_current_app() is last


def test_celerys_stopgap_is_replaced(app: Flask) -> None:
    assert state.get_current_app().main == "default"
    assert embedded.make_celery(app) is state.get_current_app()


@pytest.mark.parametrize("default", [True, False])
def test_an_app_of_somebody_else_stays_the_current_one(app: Flask, default: bool) -> None:
    own = Celery("own", set_as_current=not default)
    if default:
        own.set_default()
    celery = embedded.make_celery(app)
    assert celery is not own
    assert state.get_current_app() is own
    own.close()


def test_the_embedded_broker_warns_once_and_names_the_cures(
    app: Flask, folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedded.warn_embedded(app)  # not before there is a Celery app
    embedded.make_celery(app)
    for _ in range(2):
        embedded.warn_embedded(app)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flask_sequence", logging.WARNING)
    for part in (str(folder), 'app.config["CELERY"]', "redis://", "embedded_config"):
        assert part in record.getMessage()


@pytest.mark.parametrize("key", ["DEBUG", "TESTING"])
def test_it_does_not_warn_in_debug_and_testing(
    app: Flask, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.config[key] = True
    embedded.make_celery(app)
    embedded.warn_embedded(app)
    assert not caplog.records


def test_it_does_not_warn_who_chose_it(
    app: Flask, folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["CELERY"] = embedded.embedded_config(folder)
    embedded.make_celery(app)
    embedded.warn_embedded(app)
    assert not caplog.records
