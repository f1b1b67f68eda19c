"""Sequence.init_app: its order, the Celery app that it finds or makes, and several applications."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import typing as t
import weakref

import pytest
from celery import Celery, current_app
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from kombu import Queue
from werkzeug.local import LocalProxy

from flask_sequence import (
    BaseSequence,
    ConfigError,
    Sequence,
    SequenceRun,
    SetupError,
    Status,
    celery_app,
    step,
)
from flask_sequence.broker import embedded_config
from flask_sequence.broker.publisher import publisher_of
from flask_sequence.runtime import TASK, current_runtime, runtime_of
from flask_sequence.testing import drain
from flask_sequence.worker.task import runtime_for
from tests.support import application
from tests.support.application import close_app, create_app
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

if t.TYPE_CHECKING:
    from pathlib import Path


@step
def noop(data: dict[str, t.Any]) -> None:
    data["done"] = True


class ExtensionRun(BaseSequence):
    steps = (noop,)


def new_app(url: str = "sqlite://", **config: t.Any) -> Flask:
    app = Flask("tests.test_extension")
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=url, **config)
    return app


def app_with_database(url: str = "sqlite://", **config: t.Any) -> Flask:
    app = new_app(url, **config)
    application.db.init_app(app)
    return app


def celery_init_app(app: Flask, name: str = "theirs") -> Celery:
    """What Flask's documentation tells to write."""
    celery = Celery(name, set_as_current=False)
    celery.config_from_object(app.config.get("CELERY", {"broker_url": "memory://"}))
    app.extensions["celery"] = celery
    return celery


# The order of init_app


def test_flask_sqlalchemy_comes_first() -> None:
    with pytest.raises(SetupError, match=r"call db\.init_app\(app\) before sequence\.init_app"):
        Sequence(new_app())
    with pytest.raises(SetupError, match=r"call db\.init_app\(app\) before sequence\.init_app"):
        Sequence().init_app(new_app(), db=SQLAlchemy())


def test_what_is_no_application_is_refused() -> None:
    with pytest.raises(SetupError, match=r"was given a SQLAlchemy: write Sequence\(app, db=db\)"):
        Sequence(t.cast(Flask, SQLAlchemy()))


@pytest.mark.parametrize("given", [Celery("theirs", set_as_current=False), "sqlite://"])
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_sqlalchemy_is_refused(given: t.Any, late: bool) -> None:
    app = app_with_database()
    told = rf"takes your SQLAlchemy object, but was given a {type(given).__name__}: .*celery=celery"
    with pytest.raises(SetupError, match=told):
        Sequence().init_app(app, given) if late else Sequence(app, given)
    assert "sequence" not in app.extensions


def test_the_sqlalchemy_of_another_application_is_refused() -> None:
    app = app_with_database()
    with pytest.raises(SetupError, match="that is not the one of 'tests.test_extension'"):
        Sequence(app, db=SQLAlchemy())
    with pytest.raises(SetupError, match=r"^Flask-SQLAlchemy comes first"):
        Sequence(new_app(), db=SQLAlchemy())
    Sequence(app, db=t.cast("t.Any", LocalProxy(lambda: app.extensions["sqlalchemy"])))


def test_a_second_registration_is_refused() -> None:
    app = app_with_database()
    sequence = Sequence(app)
    with pytest.raises(SetupError, match="registered with 'tests.test_extension' already"):
        sequence.init_app(app)
    with pytest.raises(SetupError, match="import and use that one"):
        Sequence(app)


def test_an_application_without_the_extension_is_told_so() -> None:
    app = app_with_database()
    with app.app_context(), pytest.raises(SetupError, match=r"call sequence\.init_app\(app\)"):
        ExtensionRun.start()
    with pytest.raises(SetupError, match="No Flask application is active here"):
        ExtensionRun.start()


def test_a_refused_registration_leaves_nothing_behind() -> None:
    app = app_with_database(SEQUENCE_LEASE_SECOND=3)
    with pytest.raises(ConfigError, match="did you mean SEQUENCE_LEASE_SECONDS"):
        Sequence(app)
    assert "sequence" not in app.extensions
    del app.config["SEQUENCE_LEASE_SECOND"]
    Sequence(app)
    assert runtime_of(app).settings.lease_seconds == 30


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "AUTOCOMMIT"},
        {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
    ],
)
def test_an_engine_that_commits_by_itself_is_refused(options: dict[str, t.Any]) -> None:
    app = app_with_database(SQLALCHEMY_ENGINE_OPTIONS=options)
    with pytest.raises(SetupError, match="AUTOCOMMIT"):
        Sequence(app)


def test_a_session_that_begins_no_transaction_is_refused() -> None:
    app, database = new_app(), SQLAlchemy(session_options={"autobegin": False})
    database.init_app(app)
    with pytest.raises(SetupError, match="autobegin from the session_options"):
        Sequence(app)
    assert "sequence" not in app.extensions


def test_nothing_is_kept_on_the_extension() -> None:
    sequence = Sequence()
    apps = [app_with_database() for _ in range(2)]
    for app in apps:
        sequence.init_app(app)
    assert not hasattr(sequence, "app")
    for app in apps:
        with app.app_context():
            assert current_runtime().app is app


def test_the_database_may_be_given() -> None:
    app = app_with_database()
    Sequence(app, db=application.db)
    assert runtime_of(app).db is application.db


# The Celery app


def test_the_applications_celery_is_found_in_either_order() -> None:
    before, after = app_with_database(), app_with_database()
    first = celery_init_app(before)
    Sequence(before)
    Sequence(after)
    second = celery_init_app(after)
    for app, celery in ((before, first), (after, second)):
        assert runtime_of(app).celery is celery
        assert app.extensions["celery"] is celery
        assert TASK in celery.tasks


def test_one_that_comes_after_the_first_start_takes_the_place_of_ours(sqlite_url: str) -> None:
    app = create_app(sqlite_url, {"broker_url": "memory://"}, TESTING=False)
    runtime = runtime_of(app)
    with app.app_context():
        application.db.create_all()
        assert ExtensionRun.start().queue == "celery"
        application.db.session.commit()
        ours, publisher = runtime.celery, publisher_of(runtime)
        theirs = Celery("theirs", set_as_current=False, broker="memory://")
        theirs.conf.task_default_queue = "theirs"
        app.extensions["celery"] = theirs
        assert runtime_for(ours) is None
        assert runtime_for(theirs) is runtime
        assert ExtensionRun.start().queue == "theirs"
        application.db.session.commit()
    assert celery_app(app) is theirs
    assert publisher.celery is ours
    assert publisher_of(runtime).celery is theirs


def test_what_is_no_celery_does_not_take_the_place_of_ours_unnoticed() -> None:
    app = app_with_database(CELERY={"broker_url": "memory://"})
    Sequence(app)
    celery_app(app)
    app.extensions["celery"] = object()
    with pytest.raises(SetupError, match="not a Celery application but a object"):
        celery_app(app)


def test_a_given_celery_goes_before_all_others() -> None:
    given = Celery("given", set_as_current=False)
    to_class, to_init = app_with_database(), app_with_database()
    celery_init_app(to_class)
    Sequence(to_class, celery=given)
    Sequence().init_app(to_init, celery=given)
    for app in (to_class, to_init):
        assert celery_app(app) is given
    assert "celery" not in to_init.extensions
    celery_init_app(to_init)
    assert celery_app(to_init) is given


def test_the_current_app_of_celery_may_be_given() -> None:
    app = app_with_database()
    Sequence(app, celery=current_app)
    assert TASK in runtime_of(app).celery.tasks


def test_one_is_made_from_the_configuration() -> None:
    app = app_with_database(CELERY={"broker_url": "memory://", "task_default_queue": "mine"})
    Sequence(app)
    assert "celery" not in app.extensions
    celery = runtime_of(app).celery
    assert celery.conf.broker_url == "memory://"
    assert celery.conf.task_default_queue == "mine"
    assert app.extensions["celery"] is celery


def test_the_embedded_broker_is_the_default(tmp_path: Path) -> None:
    app = app_with_database()
    app.instance_path = str(tmp_path)
    Sequence(app)
    assert (
        runtime_of(app)
        .celery.conf.broker_transport_options["data_folder_in"]
        .startswith(str(tmp_path))
    )


def test_whoever_asks_for_celery_gets_it() -> None:
    app = app_with_database(CELERY={"broker_url": "memory://"})
    extensions = app.extensions
    Sequence(app)
    assert app.extensions is extensions
    assert type(extensions) is dict
    assert set(extensions) == {"sqlalchemy", "sequence"}
    celery = celery_app(app)
    assert isinstance(celery, Celery)
    assert celery is runtime_of(app).celery
    assert extensions["celery"] is celery


def test_whoever_asks_without_the_extension_is_told_so() -> None:
    with pytest.raises(SetupError, match=r"call sequence\.init_app\(app\)"):
        celery_app(new_app())


@pytest.mark.parametrize("own", [False, True])
def test_celery_finds_it_in_a_module(tmp_path: Path, own: bool) -> None:
    (tmp_path / "wsgi_module.py").write_text(
        textwrap.dedent(
            f"""
            from celery import Celery
            from flask_sequence import celery_app
            from tests.support.application import create_app
            flask_app = create_app("sqlite:///x.sqlite", {{"broker_url": "memory://"}})
            if {own}:
                flask_app.extensions["celery"] = Celery("theirs", broker="memory://")
            celery = celery_app(flask_app)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "wsgi_module:celery", "report"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "kombu.transport.memory" in done.stdout or "memory" in done.stdout


def test_threads_that_need_it_at_once_get_the_same(sqlite_url: str) -> None:
    app = create_app(sqlite_url, {"broker_url": "memory://"})
    barrier, found = threading.Barrier(8), []

    def look() -> None:
        barrier.wait()
        found.append(runtime_of(app).celery)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(celery) for celery in found}) == 1
    assert app.extensions["celery"] is found[0]


# Several applications


def test_two_applications_do_not_meet(sqlite_url: str, postgresql_url: str, tmp_path: Path) -> None:
    urls = (sqlite_url, postgresql_url)
    apps = [
        create_app(url, embedded_config(tmp_path / str(n)), SEQUENCE_QUEUE=f"queue{n}")
        for n, url in enumerate(urls)
    ]
    db = application.db
    for number, app in enumerate(apps):
        with app.app_context():
            for _ in range(number + 1):
                ExtensionRun.start()
            db.session.commit()

    def waiting(app: Flask, queue: str) -> int:
        with app.extensions["celery"].connection_for_read() as connection:
            bound: t.Any = Queue(queue, channel=connection.default_channel)
            return int(bound.queue_declare().message_count)

    counts = [[waiting(app, f"queue{n}") for n in range(2)] for app in apps]
    assert counts == [[1, 0], [0, 2]]
    assert drain(apps[1]) == 2
    with apps[0].app_context():
        assert db.session.get_one(SequenceRun, 1).status is Status.WAITING
    for app in apps:
        close_app(app)


def test_an_application_inside_the_other_starts_in_its_own_database(
    sqlite_url: str, postgresql_url: str, tmp_path: Path
) -> None:
    outer, inner = (
        create_app(url, embedded_config(tmp_path / str(n)))
        for n, url in enumerate((sqlite_url, postgresql_url))
    )
    db = application.db
    with outer.app_context():
        ExtensionRun.start()
        with inner.app_context():
            ExtensionRun.start()
            db.session.commit()
        db.session.rollback()
    counts = []
    for app in (outer, inner):
        with app.app_context():
            counts.append(db.session.query(SequenceRun).count())
        close_app(app)
    assert counts == [0, 1]


def test_applications_that_are_gone_leave_nothing(sqlite_url: str, tmp_path: Path) -> None:
    gone = []
    threads = threading.active_count()
    for number in range(50):
        app = create_app(sqlite_url, embedded_config(tmp_path / f"{number}"))
        with app.app_context():
            ExtensionRun.start()
            application.db.session.commit()
            drain(app)
            engine = application.db.engine
        runtime = runtime_of(app)
        gone.append([weakref.ref(each) for each in (app, runtime, runtime.celery, engine)])
        close_app(app)
    del app, runtime, engine

    def left() -> list[int]:
        gc.collect()
        return [n for n, refs in enumerate(gone) if any(ref() is not None for ref in refs)]

    # The last one is kept, as Celery's default application, and its thread for the broker a while.
    wait_until(lambda: left() in ([], [49]))
    wait_until(lambda: threading.active_count() <= threads + 1)
