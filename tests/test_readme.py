"""What the README and the pages of docs/ say is true: their code runs, their tables are right."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flask_sequence.status import MOVES, Status
from tests.support.waiting import wait_until
from tests.support.workers import Worker

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
QUICKSTART = ROOT / "docs" / "quickstart.md"
TESTING = ROOT / "docs" / "guide" / "testing.md"
ELSEWHERE = [ROOT / "docs" / "images", ROOT / "docs" / "reference", ROOT / "docs" / "changelog.md"]
"""What is made by other means than these pages."""
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """Give the blocks of code on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def code(page: Path) -> list[str]:
    """Give the Python of a page in its order, also what readers do not see.

    Of the README and the guide to tests, a block that begins with the name of a file is that file.
    """
    found = re.findall(
        r"^(?:```python\n(.*?)^```|<!-- invisible-code-block: python\n(.*?)^-->)",
        page.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    has_files = page in (README, TESTING)
    return [shown or hidden for shown, hidden in found if not (has_files and file_name(shown))]


def file_name(block: str) -> str | None:
    """Give the name of the file that a block is, if it is one."""
    name = re.match(r"# (\w+\.py)\n", block)
    return name[1] if name else None


WITH_CODE = [page for page in PAGES if page not in (README, QUICKSTART) and code(page)]


def table(page: Path, first: str) -> list[list[str]]:
    """Give the cells of the only table on a page whose first column has this heading."""
    found = re.findall(
        rf"^\| {first} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE
    )
    assert len(found) == 1, f"{page.name} has {len(found)} tables of {first}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[0].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


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
    """The folder with the application of the README and its tests, set up as the README says."""
    folder = tmp_path_factory.mktemp("readme")
    for page in (README, TESTING):
        for block in blocks(page, "python"):
            if name := file_name(block):
                (folder / name).write_text(block)
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
        finished = re.compile(rf"^{run_id} +ContactForm +send_receipt +finished", re.MULTILINE)
        wait_until(lambda: finished.search(run(application, "-m", *listed)), 20, interval=0.2)


def test_the_tests_of_the_guide_pass(application: Path) -> None:
    printed = run(application, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
    assert "2 passed" in printed


def test_the_fixture_of_the_guide_leaves_nothing_behind(application: Path) -> None:
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
    script = application / f"page_{page.stem.replace('-', '_')}.py"
    script.write_text("\n\n".join(code(page)))
    run(application, "-W", "error", script.name)


# Tables


def test_lifecycle_is_that_of_the_code() -> None:
    page = ROOT / "docs" / "explanation" / "lifecycle.md"
    rows = table(page, "status")
    told = {Status(name.strip("`")): set(re.findall(r"`(\w+)`", moves)) for name, _, moves in rows}
    assert told == {status: {str(move) for move in moves} for status, moves in MOVES.items()}


def test_code_is_python() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)


# Links


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert ROOT in target.parents, link
        if any(place in (target, target.parent) for place in ELSEWHERE):
            continue
        assert target.is_file(), link
        assert not anchor or anchor in _anchors(target), link
