"""`flask sequence ...`: what it does, what it prints, and its exit codes."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import typing as t
from datetime import date
from decimal import Decimal
from pathlib import Path
from unittest.mock import Mock
from uuid import UUID

import flask
import pytest
import sqlalchemy as sa
from celery import Celery, signals
from click.testing import Result
from flask import Flask

from flask_sequence import BaseSequence, SequenceRun, Status, Step
from flask_sequence.cli import sequence_cli
from flask_sequence.cli.text import escape
from flask_sequence.engine.processes import here
from flask_sequence.rows import moves, upkeep
from flask_sequence.rows.models import runs, step_runs, workers
from flask_sequence.runtime import runtime_of
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.workers import ROOT, Worker, write_module

MakeApp = t.Callable[..., Flask]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


class Greet(Step):
    def perform(self) -> None:
        self.data["greeted"] = True


class Fail(Step):
    max_retries = 0

    def perform(self) -> None:
        if "mended" not in self.data:
            raise ValueError("\x1b[31mred\nalert")


class CliForm(BaseSequence):
    steps = (Greet, Fail)


class Later(Step):
    default_retry_delay = 60

    def perform(self) -> None:
        raise OSError("no")


class CliRetry(BaseSequence):
    steps = (Later,)


class CliOther(BaseSequence):
    steps = (Greet,)


@pytest.fixture
def sqlite_app(make_app: MakeApp, sqlite_url: str) -> Flask:
    """An application on SQLite."""
    return make_app(sqlite_url)


def run(app: Flask, *arguments: str, code: int = 0) -> Result:
    """Run a command of `flask sequence`, and look at its exit code."""
    result = app.test_cli_runner().invoke(args=("sequence", *arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(app: Flask, *arguments: str, code: int = 1) -> str:
    """Run a command that prints nothing but an error, and give that."""
    result = run(app, *arguments, code=code)
    assert result.stdout == ""
    return result.stderr


def load(app: Flask, run_id: int) -> SequenceRun:
    """Give a run as it is committed."""
    with app.app_context():
        found = db.session.get(SequenceRun, run_id)
        assert found is not None
        db.session.expunge(found)
        return found


def fail(app: Flask, *data: str) -> str:
    """Start a run that fails, perform it, and give its id."""
    run_id = run(app, "start", "CliForm", *data).stdout.strip()
    drain(app)
    return run_id


def test_the_way_of_a_run(app: Flask) -> None:
    started = run(app, "start", "CliForm", "name=Jo=el", "age:=41", 'tags:=["a", null]')
    assert re.fullmatch(r"[1-9]\d*\n", started.stdout)
    assert started.stderr == ""
    run_id = started.stdout.strip()
    assert dict(load(app, int(run_id)).data) == {"name": "Jo=el", "age": 41, "tags": ["a", None]}

    drain(app)
    assert load(app, int(run_id)).status is Status.FAILED
    line = rf"^{run_id} +CliForm +Fail 2/2 +failed +{TIME} +ValueError: .*red alert$"
    assert re.search(line, listed(app), re.MULTILINE)

    run(app, "retry", run_id)
    assert load(app, int(run_id)).status is Status.WAITING
    run(app, "cancel", run_id)
    assert load(app, int(run_id)).status is Status.CANCELLED


def listed(app: Flask, *arguments: str) -> str:
    return run(app, "list", *arguments).stdout


def check_no_run(app: Flask) -> None:
    assert refused(app, "list") == "Error: There is no run.\n"


# start


def test_data_may_be_one_object(sqlite_app: Flask) -> None:
    more = '{"name": "Joel", "nested": {"b": [1.5]}}'
    run_id = run(sqlite_app, "start", "CliForm", "a:b=c:=d", "--data", more).stdout

    assert dict(load(sqlite_app, int(run_id)).data) == {
        "name": "Joel",
        "nested": {"b": [1.5]},
        "a:b": "c:=d",
    }


def test_options_of_a_start(sqlite_app: Flask) -> None:
    options = ("--key", "order-17", "--countdown", "600", "--queue", "mail")

    run_id = run(sqlite_app, "start", "CliForm", *options).stdout

    row = load(sqlite_app, int(run_id))
    assert (row.key, row.queue) == ("order-17", "mail")
    assert row.due_at is not None
    assert 590 < (row.due_at - row.created_at).total_seconds() < 610
    assert run(sqlite_app, "start", "CliForm", "--key", "order-17").stdout == run_id


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["name"], "write key=value or key:=JSON"),
        (["=x"], "write key=value or key:=JSON"),
        ([":=1"], "write key=value or key:=JSON"),
        (["n:=x"], "this is not valid JSON"),
        (["n=1", "n=2"], "'n' is given twice"),
        (["n=1", "--data", '{"n": 2}'], "'n' is given twice"),
        (["--data", "[1]"], "--data must be a JSON object"),
        (["--data", "{"], "this is not valid JSON"),
        (["--countdown", "-1"], "--countdown"),
        (["--unknown"], "No such option"),
    ],
)
def test_a_start_that_is_written_wrongly(
    sqlite_app: Flask, arguments: list[str], told: str
) -> None:
    assert told in refused(sqlite_app, "start", "CliForm", *arguments, code=2)
    check_no_run(sqlite_app)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["Nope"], "No sequence 'Nope' is known here"),
        (["CliForm", "n:=NaN"], 'data["n"]'),
        (["CliForm", "--key", " "], "set(key="),
    ],
)
def test_a_start_that_is_refused(sqlite_app: Flask, arguments: list[str], told: str) -> None:
    error = refused(sqlite_app, "start", *arguments)

    assert told in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    check_no_run(sqlite_app)


# list


def test_the_columns_are_aligned(sqlite_app: Flask) -> None:
    fail(sqlite_app)
    run(sqlite_app, "start", "CliOther", "--key", "order-17")

    header, newer, older = listed(sqlite_app).splitlines()

    assert header.split() == ["ID", "SEQUENCE", "STEP", "STATUS", "KEY", "UPDATED", "ERROR"]
    places = [header.index(name) for name in header.split()]
    for line, cells in (
        (newer, ["2", "CliOther", "Greet 1/1", "waiting", "order-17"]),
        (older, ["1", "CliForm", "Fail 2/2", "failed"]),
    ):
        assert [line[at:].partition("  ")[0].rstrip() for at in places][: len(cells)] == cells


def test_a_finished_run_stands_at_no_step(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliOther")
    drain(sqlite_app)
    assert re.search(r"^1 +CliOther +1/1 +finished", listed(sqlite_app), re.MULTILINE)


def test_a_run_that_waits_for_another_try_shows_which_and_why(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliRetry")
    drain(sqlite_app)
    shown = r"waiting \(retry 1 of 25, next in (59|60) s\)"
    assert re.search(rf"^1 +CliRetry +Later 1/1 +{shown} .*OSError: no$", listed(sqlite_app), re.M)
    assert re.search(rf"^status +{shown}$", run(sqlite_app, "show", "1").stdout, re.MULTILINE)
    told = run(sqlite_app, "retry", "1")
    assert told.stdout == "Run 1 will run again from Later.\n"
    assert drain(sqlite_app) == 1


def test_a_list_with_nothing_says_so(sqlite_app: Flask) -> None:
    assert "There is no failed run." in refused(sqlite_app, "list", "--status", "failed")
    assert "There is no run of CliForm." in refused(sqlite_app, "list", "--sequence", "CliForm")
    told = refused(sqlite_app, "list", "--sequence", "CliFrom")
    assert "There is no run of a sequence 'CliFrom', and no such sequence is known here" in told
    assert "did you mean Cli" in told


def test_missing_workers_are_told(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliOther")
    run(sqlite_app, "start", "CliOther", "--queue", "mail")
    queue, other = "flask sequence worker'.", "flask sequence worker -Q mail'."
    told = run(sqlite_app, "list").stderr
    assert [line.split("'")[1] + "'." for line in told.splitlines()] == [queue, other]
    assert told.count("No worker is running") == 2
    assert "No worker is running" in run(sqlite_app, "show", "1").stderr
    with sqlite_app.app_context(), db.engine.begin() as connection:
        upkeep.renew_worker(connection, "w", host="h", pid=1, lease=30, queues=["celery"])
    assert run(sqlite_app, "show", "1").stderr == ""
    assert run(sqlite_app, "show", "2").stderr == (
        "No running worker consumes the queue 'mail': start one with 'flask sequence worker -Q"
        " mail'.\n"
    )


def test_show_writes_an_integer_of_very_many_digits(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        CliForm.start(rows=[{"small": -(10**600), "large": -(10**5000)}], token=10**5000)
        db.session.commit()
    told = run(sqlite_app, "show", "1").stdout
    assert f'"small": {-(10**600)}' in told
    assert f'"large": "{hex(-(10**5000))}"' in told
    assert '"token": "***"' in told


def test_a_list_has_a_limit_that_the_database_takes(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliForm")
    assert listed(sqlite_app, "--limit", str(2**63 - 1)).splitlines()[1].startswith("1 ")
    for limit in (0, 2**63, 10**20):
        assert "is not in the range" in refused(sqlite_app, "list", "--limit", str(limit), code=2)


def test_a_list_can_be_narrowed(sqlite_app: Flask) -> None:
    fail(sqlite_app)
    for name in ("CliOther", "CliForm"):
        run(sqlite_app, "start", name)

    def ids(*arguments: str) -> list[str]:
        return [line.split()[0] for line in listed(sqlite_app, *arguments).splitlines()[1:]]

    assert ids() == ["3", "2", "1"]
    assert ids("--limit", "2") == ["3", "2"]
    assert ids("--status", "failed") == ["1"]
    assert ids("--sequence", "CliForm") == ["3", "1"]
    assert ids("--sequence", "CliForm", "--status", "waiting") == ["3"]
    assert "'over' is not one of 'waiting'" in refused(
        sqlite_app, "list", "--status", "over", code=2
    )


# show


def test_show_tells_all_of_a_run(sqlite_app: Flask) -> None:
    run_id = fail(sqlite_app, "name=Zoë \u202e\x1b[2J", "when:=[1]")

    shown = run(sqlite_app, "show", run_id).stdout

    assert re.search(rf"^id +{run_id}$", shown, re.MULTILINE)
    assert re.search(r"^status +failed$", shown, re.MULTILINE)
    assert re.search(r"^step +Fail \(2 of 2\)$", shown, re.MULTILINE)
    assert re.search(rf"^updated +{TIME} \(\S+ s ago\)$", shown, re.MULTILINE)
    assert re.search(r"^error +ValueError: .*red.*alert$", shown, re.MULTILINE)
    assert '\n    "name": "Zoë \\u202e\\u001b[2J",\n    "when": [\n' in shown
    took = rf"{TIME} +\S+ s +\S+:\d+"
    assert re.search(rf"^  Greet +1 +finished +{took}$", shown, re.MULTILINE)
    assert re.search(rf"^  Fail +1 +failed +{took} +ValueError: ", shown, re.MULTILINE)
    assert shown.endswith(
        f"\nnext: flask sequence show {run_id} --traceback, or flask sequence retry {run_id}\n"
    )
    assert "Traceback" not in shown
    assert not set(shown) & {"\x1b", "\u202e"}


def test_show_gives_values_as_one_reads_them(sqlite_app: Flask) -> None:
    data = {"price": Decimal("12.50"), "day": date(2026, 3, 4), "id": UUID(int=7), "raw": b"ab"}
    with sqlite_app.app_context():
        CliOther.start(**data)
        db.session.commit()
    shown = run(sqlite_app, "show", "1").stdout
    for line in ('"price": "12.50"', '"day": "2026-03-04"', f'"id": "{UUID(int=7)}"'):
        assert f"    {line}," in shown
    assert re.search(r"^  Greet +waiting$", shown, re.MULTILINE)
    assert "__type__" not in shown


@pytest.mark.skipif(here() is None, reason="the numbers of processes may be of another place")
def test_show_tells_what_is_performed_and_what_is_to_come(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliForm")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = runtime_of(sqlite_app).host
    with sqlite_app.app_context(), db.engine.begin() as connection:
        upkeep.renew_worker(
            connection, "w", host=host, pid=os.getpid(), lease=30, queues=["celery"], place=here()
        )
        moves.claim(connection, 1, 0, worker_id="w", pid=gone.pid)
    shown = run(sqlite_app, "show", "1")
    label = f"{host}:{gone.pid}"
    assert re.search(rf"^  Greet +1 +running +{TIME} +\S+ s +{label}$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  Fail +to come$", shown.stdout, re.MULTILINE)
    assert "Its process is gone: its worker takes the run over within 3 s." in shown.stderr
    with sqlite_app.app_context():
        db.session.execute(sa.update(workers).values(pid=gone.pid))
        db.session.commit()
    assert re.search(
        r"takes the run over within 5 s, or one elsewhere in 3\d s",
        run(sqlite_app, "show", "1").stderr,
    )
    with sqlite_app.app_context():
        db.session.execute(sa.delete(workers))
        db.session.commit()
    assert (
        "another one, if any is running, takes the run over within 5 s"
        in run(sqlite_app, "show", "1").stderr
    )


def test_a_run_whose_data_cannot_be_read_is_shown_and_cancelled(sqlite_app: Flask) -> None:
    run(sqlite_app, "start", "CliOther")
    with sqlite_app.app_context(), db.engine.begin() as connection:
        stored = '{"a": {"__type__": "of a later release", "__value__": "x"}}'
        connection.execute(sa.text("UPDATE sequence_runs SET data = :data"), {"data": stored})
    assert "of a later release" in run(sqlite_app, "show", "1").stdout
    run(sqlite_app, "cancel", "1")
    assert load(sqlite_app, 1).status is Status.CANCELLED


def test_show_gives_tracebacks_when_asked(sqlite_app: Flask) -> None:
    shown = run(sqlite_app, "show", fail(sqlite_app), "--traceback").stdout

    assert "\nFail, attempt 1\n  Traceback (most recent call last):\n" in shown
    assert "in perform" in shown
    assert "\x1b" not in shown


def test_show_masks_secrets(sqlite_app: Flask) -> None:
    data = (
        '{"password": "hush", "nested": [{"API_Token": {"a": "hush"}, "client-secret": "hush"}],'
        ' "headers": [{"name": "Authorization", "value": "hush"}], "iban": "hush", "name": "Joel"}'
    )
    run_id = run(sqlite_app, "start", "CliForm", "--data", data).stdout.strip()

    shown = run(sqlite_app, "show", run_id).stdout

    assert "hush" not in shown
    assert shown.count('"***"') == 5
    assert '"name": "Joel"' in shown


def test_show_masks_secrets_in_errors_too(sqlite_app: Flask) -> None:
    run_id = fail(sqlite_app)
    with sqlite_app.app_context():
        told = {"error": "ValueError: hush-1", "data": {"token": "hush-1"}}
        db.session.execute(sa.update(runs).values(told))
        db.session.execute(sa.update(step_runs).values(error="hush-1", traceback="hush-1"))
        db.session.commit()

    shown = run(sqlite_app, "show", run_id, "--traceback").stdout

    assert "hush" not in shown
    assert "error     ValueError: ***" in shown
    assert shown.count("  ***\n") == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x1b[0m", "a\\nb\\x1b[0m"),
        ("\x9b\u2028\u2066\ud800", "\\x9b\\u2028\\u2066\\ud800"),
        ("Zoë \u200d 👩‍🚀 \\ 'x'", "Zoë \u200d 👩‍🚀 \\ 'x'"),
    ],
)
def test_control_characters_do_nothing(text: str, shown: str) -> None:
    assert escape(text) == shown


# Moves


def test_moves_that_are_refused(sqlite_app: Flask) -> None:
    run_id = run(sqlite_app, "start", "CliOther").stdout.strip()
    assert "is waiting at Greet, and due already" in refused(sqlite_app, "retry", run_id)

    drain(sqlite_app)
    assert "is finished already" in refused(sqlite_app, "cancel", run_id)


@pytest.mark.parametrize("command", ["show", "retry", "cancel"])
def test_a_run_that_is_not_there(sqlite_app: Flask, command: str) -> None:
    assert "There is no run 99" in refused(sqlite_app, command, "99")
    assert "Invalid value for 'ID'" in refused(sqlite_app, command, "first", code=2)
    assert "Invalid value for 'ID'" in refused(sqlite_app, command, str(2**63), code=2)


# The application


def test_missing_tables_are_told(make_app: MakeApp, empty_database_url: str) -> None:
    app = make_app(empty_database_url)

    for command in (("list",), ("show", "1"), ("start", "CliForm")):
        error = refused(app, *command)
        assert "flask sequence init" in error
        assert error.count("\n") == 1


def test_sequences_are_imported_first(
    make_app: MakeApp, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from flask import current_app
        from flask_sequence import BaseSequence, step

        @step(queue=current_app.name)
        def nothing(data):
            pass

        class Imported(BaseSequence):
            steps = (nothing,)
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    app = make_app(sqlite_url, SEQUENCE_IMPORTS=[write_module(tmp_path, source, "cli_imported")])

    run(app, "start", "Imported")

    missing = make_app(sqlite_url, SEQUENCE_IMPORTS=["cli_missing"])
    assert "SEQUENCE_IMPORTS names 'cli_missing'" in refused(missing, "list")


def test_every_help_text_has_examples(sqlite_app: Flask) -> None:
    for name in sorted(sequence_cli.commands):
        shown = run(sqlite_app, name, "--help").stdout
        assert f"  Examples:\n    flask sequence {name}" in shown
    assert "  Examples:\n    flask sequence init" in run(sqlite_app, "--help").stdout


def test_a_database_that_does_not_answer_is_told(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/missing/app.sqlite")

    for command in (("list",), ("start", "CliForm")):
        error = refused(app, *command)
        assert "unable to open database file" in error
        assert "SQLALCHEMY_DATABASE_URI" in error
        assert "?" not in error
        assert error.count("\n") == 1


def test_the_command_is_known_wherever_the_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, name = project["entry-points"]["flask.commands"]["sequence"].partition(":")
    assert getattr(importlib.import_module(module), name) is sequence_cli


def test_an_application_without_the_extension_is_told_so() -> None:
    result = Flask("bare").test_cli_runner().invoke(sequence_cli, ["list"])
    assert result.exit_code == 1
    assert "call sequence.init_app(app)" in result.stderr


# worker


def test_the_worker_gets_all_options_and_no_app_context(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], bool]] = []

    def worker_main(celery: Celery, arguments: list[str]) -> None:
        seen.append((arguments, flask.has_app_context()))
        assert celery is runtime_of(sqlite_app).celery

    monkeypatch.setattr(Celery, "worker_main", worker_main)

    with sqlite_app.app_context():
        run(sqlite_app, "worker", "-c", "4", "-P", "threads", "--loglevel=info", "-Q", "a,b")

    expected = ["worker", "-c", "4", "-P", "threads", "--loglevel=info", "-Q", "a,b"]
    assert seen == [(expected, False)]


@pytest.mark.parametrize("code", [None, 0, 1])
def test_a_worker_that_failed_says_so_to_the_service_manager(
    sqlite_app: Flask, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def worker_main(celery: Celery, arguments: list[str]) -> None:
        signals.worker_init.send(sender=Mock(exitcode=code))

    monkeypatch.setattr(Celery, "worker_main", worker_main)
    monkeypatch.setattr("flask_sequence.worker.signals.runtime_of_worker", lambda celery: None)
    run(sqlite_app, "worker", code=code or 0)


def test_the_worker_stays_in_the_foreground(sqlite_app: Flask) -> None:
    for option in ("-D", "--detach"):
        assert "service manager" in refused(sqlite_app, "worker", option, code=2)


@pytest.mark.parametrize(
    "options", [("-P", "gevent"), ("-Pgevent",), ("-c", "9", "--pool=eventlet", "-Q", "x")]
)
def test_a_pool_that_patches_python_is_left_to_celerys_own_command(
    sqlite_app: Flask, options: tuple[str, ...]
) -> None:
    assert "celery -A MODULE worker" in refused(sqlite_app, "worker", *options, code=2)


def test_a_wrong_option_of_the_worker(sqlite_app: Flask) -> None:
    assert "--bananas" in refused(sqlite_app, "worker", "--bananas", code=2)


# From outside

APPLICATION = """
    import flask
    from celery import signals
    from flask import Flask
    from flask_migrate import Migrate
    from flask_sqlalchemy import SQLAlchemy
    from flask_sequence import BaseSequence, Sequence, step

    db = SQLAlchemy()

    @step
    def greet(data):
        data["greeting"] = f"Hello {data['name']}"

    class Hello(BaseSequence):
        steps = (greet,)

    @signals.worker_ready.connect
    @signals.worker_process_init.connect
    def tell(**_):
        print(f"app context: {flask.has_app_context()}", flush=True)

    def create_app():
        app = Flask(__name__)
        app.config.update(
            TESTING=True,
            SQLALCHEMY_DATABASE_URI="sqlite:///hello.sqlite",
            SEQUENCE_SWEEP_SECONDS=0.5,
        )
        db.init_app(app)
        Migrate(app, db)
        Sequence(app)
        return app
"""


def command(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of `flask` as a person would, and look at its exit code."""
    done = subprocess.run(
        (sys.executable, "-m", "flask", "--app", "hello", *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_from_an_empty_folder_to_a_finished_run(
    tmp_path: Path, start_worker: t.Callable[..., Worker]
) -> None:
    write_module(tmp_path, APPLICATION, "hello")

    written = command(tmp_path, "sequence", "init").stdout
    assert re.search(r"^Wrote migrations/versions/flask_sequence_1_\w+\.py$", written, re.M)
    assert "Nothing to do" in command(tmp_path, "sequence", "init").stdout
    missing = command(tmp_path, "sequence", "start", "Hello", "name=Joel", code=1)
    assert (missing.stdout, missing.stderr.count("\n")) == ("", 1)
    command(tmp_path, "db", "upgrade")

    started = command(tmp_path, "sequence", "start", "Hello", "name=Joel")
    assert (started.stdout, started.stderr) == ("1\n", "")
    worker = start_worker("hello", "-c", "1")
    worker.wait_for("succeeded")
    shown = command(tmp_path, "sequence", "show", "1").stdout
    assert re.search(r"^status +finished$", shown, re.MULTILINE)
    assert '"greeting": "Hello Joel"' in shown
    assert worker.stop() == 0
    assert worker.log.count("app context: False") == 2
    assert "app context: True" not in worker.log

    assert command(tmp_path, "sequence", "retry", "1", code=1).stdout == ""
    assert command(tmp_path, "sequence", "start", code=2).stdout == ""
    assert "--autoscale" in command(tmp_path, "sequence", "worker", "--help").stdout
