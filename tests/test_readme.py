"""What the README and the pages of docs/ say is true: their code runs, their tables are right."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
import typing as t
from datetime import timedelta
from pathlib import Path

import pytest

import flask_sequence
from flask_sequence import SequenceError
from flask_sequence.cli import sequence_cli
from flask_sequence.config import Settings
from flask_sequence.definition.options import OPTIONS, StepOptions
from flask_sequence.status import MOVES, Status
from tests.support.waiting import wait_until
from tests.support.workers import Worker

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PRELUDE = """
    import pathlib, smtplib
    import app as readme
    import pytest
    from app import ContactForm, CreateMessage, Message, db
    from celery import Celery
    from flask_sequence import *
    from flask_sequence.broker import embedded_config
    from flask_sequence.testing import drain

    made = readme.create_app
    def create_app():
        app = made()
        app.extensions["celery"] = Celery()
        return app
    readme.create_app = create_app
    app = made("sqlite://")
"""
"""What the code on the pages of docs/ may take for granted."""


def blocks(page: Path, language: str) -> list[str]:
    """Give the blocks of code on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


WITH_CODE = [page for page in PAGES if page != README and blocks(page, "python")]


def table(page: Path, first: str) -> list[list[str]]:
    """Give the cells of the only table on a page whose first column has this heading."""
    found = re.findall(
        rf"^\| {first} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE
    )
    assert len(found) == 1, f"{page.name} has {len(found)} tables of {first}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[0].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def column(page: Path, first: str, heading: str) -> dict[str, str]:
    """Give one column of a table by the code in its first one."""
    headings = re.search(rf"^\| ({first} \|.*) \|$", page.read_text(), re.MULTILINE)
    assert headings
    index = [name.strip() for name in headings[1].split("|")].index(heading)
    return {row[0].strip("`"): row[index].strip("`") for row in table(page, first)}


def value_of(code: str) -> t.Any:
    """Give the value of a default as a table has it."""
    return eval(code, {"timedelta": timedelta})


def environment() -> dict[str, str]:
    """Give the environment of a stranger."""
    left_out = ("FLASK_", "CELERY_", "SEQUENCE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *command: str) -> str:
    """Run Python in the folder of the application, and give what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_script(folder: Path, source: str) -> str:
    """Run the source of a module in the folder of the application."""
    return run(folder, "-W", "error", "-c", textwrap.dedent(source))


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the application of the README, set up by the commands of the README."""
    folder = tmp_path_factory.mktemp("readme")
    for block in blocks(README, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, f"a block without the name of its file cannot be executed:\n{block}"
        (folder / name[1]).write_text(block)
    assert {path.name for path in folder.iterdir()} == {"app.py", "conftest.py", "test_contact.py"}
    set_up = blocks(README, "console")[0]
    for line in set_up.splitlines():
        for command in line.removeprefix("$ ").split(" && "):
            words = shlex.split(command, comments=True)
            assert words[0] == "flask", line
            run(folder, "-m", *words)
    return folder


def test_the_application_works(application: Path) -> None:
    run_script(
        application,
        """
        from app import Message, create_app, db
        from flask_sequence import SequenceRun, Status
        from flask_sequence.testing import drain

        app = create_app()
        app.testing = True
        form = {"email": "joel@example.com", "text": "Hi"}
        answer = app.test_client().post("/contact", data=form)
        assert answer.status_code == 202
        with app.app_context():
            assert db.session.scalars(db.select(Message)).all() == []
        assert drain(app) == 2
        with app.app_context():
            message = db.session.scalars(db.select(Message)).one()
            run = db.session.get(SequenceRun, answer.json["run"])
            assert message.text == "Hi"
            assert run.status is Status.FINISHED
            assert run.data == {**form, "message_id": message.id}
        """,
    )


def test_the_migrations_say_what_the_models_say(application: Path) -> None:
    run(application, "-m", "flask", "db", "check")


def test_a_worker_started_as_written_runs_it(application: Path) -> None:
    commands = blocks(README, "console")[1].splitlines()
    worker = commands[0].removeprefix("$ flask sequence worker ").split()
    with Worker(application, "app", *worker, env={"FLASK_APP": "app"}).start():
        start = ("start", "ContactForm", "email=joel@example.com", "text=Hi")
        run_id = run(application, "-m", "flask", "sequence", *start).strip()
        listed = commands[-1].removeprefix("$ ").split()
        finished = re.compile(rf"^{run_id} +ContactForm +2/2 +finished", re.MULTILINE)
        wait_until(lambda: finished.search(run(application, "-m", *listed)), 20, interval=0.2)


def test_the_tests_of_the_readme_pass(application: Path) -> None:
    printed = run(application, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
    assert "2 passed" in printed


def test_the_fixture_of_the_readme_leaves_nothing_behind(application: Path) -> None:
    twice = application / "test_twice.py"
    twice.write_text(
        textwrap.dedent(
            """
            import pathlib
            import pytest
            from app import ContactForm, Message, db, send_receipt
            from flask_sequence import SequenceRun, Status
            from flask_sequence.testing import drain

            @pytest.mark.parametrize("number", [1, 2])
            def test_failure(app, number, monkeypatch):
                def fail(step):
                    db.session.add(Message(text="rolled back"))
                    db.session.flush()
                    raise OSError

                monkeypatch.setattr(send_receipt.step_class, "perform", fail)
                with app.app_context():
                    assert db.session.scalars(db.select(SequenceRun)).all() == []
                    run = ContactForm.start(email="joel@example.com", text="Hi")
                    db.session.commit()
                    assert drain(app, ignore_due=True) == 7
                    db.session.refresh(run)
                    assert run.status is Status.FAILED
                    assert db.session.scalars(db.select(Message.text)).all() == ["Hi"]
                assert not pathlib.Path(app.instance_path, "sequence_broker").exists()
            """
        )
    )
    folder = application / "instance" / "sequence_broker"
    if folder.exists():
        folder.rename(folder.with_name("of_other_tests"))
    assert "2 passed" in run(application, "-m", "pytest", "-q", "-W", "error", twice.name)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(application: Path, page: Path) -> None:
    body = "\n\n".join(blocks(page, "python"))
    if page.name == "lifecycle.md":
        body += textwrap.dedent(
            """
            class Import(BaseSequence):
                steps = (ImportRows,)

            db.create_all()
            Import.start(rows=250)
            order = Order(run=ContactForm.start(email="", text=""))
            db.session.add(order)
            db.session.commit()
            assert order.run_id == order.run.id
            assert drain(app) == 3
            texts = db.session.scalars(db.select(Message.text)).all()
            assert sorted(texts) == sorted(["", *(f"row {number}" for number in range(250))])
            """
        )
    source = (
        f"{textwrap.dedent(PRELUDE)}\nwith app.app_context():\n    db.create_all()\n"
        f"{textwrap.indent(body, '    ')}"
    )
    (application / f"page_{page.stem.replace('-', '_')}.py").write_text(source)
    run(application, "-W", "error", f"page_{page.stem.replace('-', '_')}.py")


# Tables


@pytest.mark.parametrize("page", [README, REFERENCE], ids=lambda page: page.name)
def test_settings_are_those_of_the_code(page: Path) -> None:
    defaults = {key: value_of(code) for key, code in column(page, "setting", "default").items()}
    documented = re.findall(r"^    \"\"\"``(SEQUENCE_\w+)``", _source("config.py"), re.MULTILINE)
    assert list(defaults) == documented
    assert Settings.from_config(defaults) == Settings()
    for key, value in defaults.items():  # Each by itself, so that no two make up for each other.
        assert Settings.from_config({key: value}) == Settings(), key


@pytest.mark.parametrize("page", [README, REFERENCE], ids=lambda page: page.name)
def test_options_are_those_of_the_code(page: Path) -> None:
    defaults = {key: value_of(code) for key, code in column(page, "option", "default").items()}
    assert list(defaults) == list(OPTIONS)
    assert defaults.pop("max_retries") == Settings().max_retries
    for option, value in defaults.items():
        assert StepOptions.from_mapping("a step", {option: value}) == StepOptions(), option


def test_lifecycle_is_that_of_the_code() -> None:
    page = ROOT / "docs" / "lifecycle.md"
    rows = table(page, "status")
    told = {Status(name.strip("`")): set(re.findall(r"`(\w+)`", moves)) for name, _, moves in rows}
    assert told == {status: {str(move) for move in moves} for status, moves in MOVES.items()}
    arrows = re.findall(r"^    (\w+) --> (\w+)", blocks(page, "mermaid")[0], re.MULTILINE)
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == {(str(a), str(b)) for a, moves in MOVES.items() for b in moves}


def test_errors_are_those_of_the_code() -> None:
    errors = {
        name
        for name in flask_sequence.__all__
        if isinstance(value := getattr(flask_sequence, name), type)
        and issubclass(value, SequenceError)
    }
    builtins = column(REFERENCE, "error", "also a")
    assert set(builtins) == errors
    for name, builtin in builtins.items():
        assert issubclass(getattr(flask_sequence, name), value_of(builtin)), name


def test_every_public_name_is_in_the_reference() -> None:
    text = REFERENCE.read_text()
    missing = [name for name in flask_sequence.__all__ if not re.search(rf"`{name}\b", text)]
    assert missing == []


def test_commands_are_those_of_the_code() -> None:
    rows = [row[0].strip("`") for row in table(REFERENCE, "command")]
    usages = dict(row.removeprefix("flask sequence ").partition(" ")[::2] for row in rows)
    assert set(usages) == set(sequence_cli.commands)
    for name, command in sequence_cli.commands.items():
        options = {word for parameter in command.params for word in parameter.opts}
        long = {option for option in options if option.startswith("--")}
        told = set(re.findall(r"--\w+", usages[name]))
        assert told == long - ({"--directory"} if name == "init" else set()), name


def test_code_is_python() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)


# Links


def _source(name: str) -> str:
    return (ROOT / "flask_sequence" / name).read_text()


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert ROOT in target.parents, link
        assert not anchor or anchor in _anchors(target), link
