"""What the README and the pages of docs/ say is true: code runs, and links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import textwrap
import typing as t
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from sybil import Sybil
from sybil.parsers.myst import SkipParser

from flask_sequence import Status
from flask_sequence.testing import drain
from tests.support.application import db
from tests.support.pages import (
    DOCS,
    PAGES,
    README,
    ROOT,
    Page,
    blocks,
    is_set_up_by_itself,
    run,
    run_script,
)
from tests.support.starts import TwoSteps
from tests.support.waiting import wait_until

SKIPPED = 0
"""How many blocks of code are not executed, each for the reason that stands above it."""

TESTING = next(page for page in PAGES if "# conftest.py" in page.read_text())
OPERATIONS = DOCS / "guide" / "operations.md"
WITH_CODE = [page for page in PAGES if blocks(page, "python") or blocks(page, "console")]


def named(page: Path) -> str:
    """Name a page for a test."""
    return str(page.relative_to(ROOT))


def file_of(page: Path, name: str) -> str:
    """Give the only block of a page that is a file of this name."""
    (block,) = (block for block in blocks(page, "python") if block.startswith(f"# {name}\n"))
    return block


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the application of the README, set up by the commands of the README."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "app.py").write_text(file_of(README, "app.py"))
    lines = "\n".join(blocks(README, "console")).replace(" && ", "\n$ ").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("$ ")]
    for command in commands:
        if command[1:2] == ["db"] or command[1:3] == ["sequence", "init"]:
            run(folder, "-m", *command)
    assert (folder / "instance" / "contact.db").is_file()
    return folder


@pytest.fixture
def application(template: Path, tmp_path: Path) -> Path:
    """The same, for one test only."""
    return shutil.copytree(template, tmp_path / "application")


# Code


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    with Page(README, tmp_path) as readme:
        readme.execute()
        finished = re.compile(r"^\d+ +ContactForm +\S+ +finished", re.MULTILINE)
        listed = ("-m", "flask", "sequence", "list")
        wait_until(lambda: finished.search(run(tmp_path, *listed)), 20, interval=0.2)


@pytest.mark.parametrize("path", [page for page in WITH_CODE if page != README], ids=named)
def test_the_code_of_a_page_runs(template: Path, tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "page"
    if is_set_up_by_itself(path):
        folder.mkdir()
        shutil.copy(template / "app.py", folder)
    else:
        shutil.copytree(template, folder)
    with Page(path, folder) as page:
        page.execute()


def test_a_block_is_skipped_for_a_reason_only() -> None:
    skips = [
        (named(page), example.line, *example.parsed)
        for page in PAGES
        for example in Sybil([SkipParser()]).parse(page).examples()
    ]
    assert [skip for skip in skips if skip[2] != "next" or not skip[3]] == []
    assert len(skips) == SKIPPED, skips


def test_every_block_is_seen() -> None:
    for page in PAGES:
        opened = re.findall(
            r"^ *(?:```|~~~)(python|console|py|pycon|bash|shell)\b", page.read_text(), re.MULTILINE
        )
        seen = {language: blocks(page, language) for language in ("python", "console")}
        visible = re.findall(r"invisible-code-block: \w+", page.read_text())
        assert len(opened) == sum(map(len, seen.values())) - len(visible), named(page)
        for block in seen["python"]:
            ast.parse(block)


def test_the_commands_of_the_repository_exist() -> None:
    for page in PAGES:
        for command in re.findall(r"(?<![\w/.])bin/[\w-]+", page.read_text()):
            assert (ROOT / command).is_file(), f"{named(page)}: {command}"


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


def test_the_fixture_for_tests_leaves_nothing_behind(application: Path) -> None:
    (application / "conftest.py").write_text(file_of(TESTING, "conftest.py"))
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


def test_a_copy_of_a_database_is_put_to_rest_as_the_page_says(sqlite_app: Flask) -> None:
    (statement,) = re.findall(r"^> ```sql\n(.*?)^> ```", OPERATIONS.read_text(), re.M | re.S)
    started = [TwoSteps.set(key=status.value).start() for status in Status]
    db.session.flush()
    table = sa.table("sequence_runs", sa.column("id"), sa.column("status"))
    for each, status in zip(started, Status, strict=True):
        db.session.execute(
            sa.update(table).where(table.c.id == each.id).values(status=status.value)
        )
    db.session.execute(sa.text(statement.replace("> ", "")))
    db.session.commit()
    assert {each.status for each in started} == {Status.FINISHED, Status.CANCELLED}
    assert drain(sqlite_app, ignore_due=True) == 0
    assert TwoSteps.set(key="failed").start() not in started


def test_a_newcomer_and_the_ci_run_the_same_tests() -> None:
    assert "`bin/test`" in README.read_text()
    commands = re.findall(r"^bin/\S+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands == ["bin/setup", "bin/lint", "bin/docs", "bin/test"]


# Links


def _anchors(page: Path) -> t.Iterator[str]:
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-")
        number = seen.get(anchor, 0)
        seen[anchor] = number + 1
        yield f"{anchor}-{number}" if number else anchor


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        assert not anchor or anchor in _anchors(target), link


def test_every_page_is_named_in_the_index() -> None:
    named_there = re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "index.md").read_text())
    pages = {str(page.relative_to(DOCS)) for page in PAGES if DOCS in page.parents}
    assert set(named_there) == pages - {"index.md"}


# Pictures


def test_the_pictures_read_on_a_light_and_on_a_dark_screen() -> None:
    pictures = {path.name: path.read_text() for path in (DOCS / "images").glob("*.svg")}
    assert {"picture.svg", "demo.svg", "statuses.svg"} <= pictures.keys()
    for name, picture in pictures.items():
        assert len(picture) <= 300_000, name
        assert "<title" in picture, name
        # A recording is dark on any screen; its own paper is the first thing that it draws.
        assert "prefers-color-scheme: dark" in picture or name == "demo.svg", name
        assert re.search(r'<rect (class="paper"|width="\d+" height="\d+" rx="8" fill=)', picture)
    assert "kill -9 of the worker" in pictures["demo.svg"]
    assert pictures["demo.svg"].count(">  ok ") == 7
