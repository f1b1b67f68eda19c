"""The reference in docs/reference/ is complete, and says what the code says."""

from __future__ import annotations

import importlib
import re
import sys
import typing as t
from datetime import timedelta
from pathlib import Path

import pytest

import flask_sequence
from flask_sequence import SequenceError, errors, testing
from flask_sequence.cli import sequence_cli
from flask_sequence.config import _SETTINGS, Settings
from flask_sequence.definition.options import CELERY_OPTIONS, OPTIONS, StepOptions
from flask_sequence.rows.models import MODELS
from flask_sequence.status import MOVES, Status, StepStatus
from tests.support.pages import DOCS, PAGES

REFERENCE = DOCS / "reference"
ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def read(name: str) -> str:
    """Give the text of a page of the reference."""
    return (REFERENCE / name).read_text()


def headings(name: str) -> set[str]:
    """Give what the sections of a page are about: the last word of each heading."""
    found = re.findall(r"^## `?@?([\w. ]+)`?$", read(name), re.MULTILINE)
    return {heading.rpartition(".")[2] for heading in found}


def table(text: str, first: str) -> dict[str, list[str]]:
    """Give the rows of the only table whose first column has this heading, by the code in it."""
    found = re.findall(rf"^\| {first} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} tables of {first}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[0].splitlines()]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def value_of(code: str) -> t.Any:
    """Give the value of a default as a table has it."""
    return eval(code.strip("`"), {"timedelta": timedelta})


def pages_with(first: str) -> list[Path]:
    """Give the pages that have a table whose first column has this heading."""
    return [
        page for page in PAGES if re.search(rf"^\| {first} \|.*default", page.read_text(), re.M)
    ]


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    """The generated files, as bin/docs would write them now."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        module = importlib.import_module("generated")
    finally:
        sys.path.pop(0)
    return t.cast("dict[Path, str]", module.files())


def test_it_is_as_the_code_has_it(generated: dict[Path, str]) -> None:
    wrong = [path for path, text in generated.items() if path.read_text() != text]
    assert wrong == [], "run bin/docs"


def test_every_public_name_is_there() -> None:
    public = {*flask_sequence.__all__, *testing.__all__, "embedded_config", "__version__"}
    assert public <= headings("api.md") | headings("errors.md")


def test_every_error_is_there() -> None:
    assert headings("errors.md") == ERRORS.keys()
    exported = {
        name
        for name in flask_sequence.__all__
        if isinstance(value := getattr(flask_sequence, name), type)
        and issubclass(value, SequenceError)
    }
    assert exported <= ERRORS.keys()
    for name in ERRORS:
        section = read("errors.md").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert re.search(r"^\*\*What to do\.\*\* \S", section, re.MULTILINE), name


def test_the_text_of_an_error_ends_with_its_place() -> None:
    own = [cls for cls in ERRORS.values() if issubclass(cls, SequenceError)]
    assert len(own) > 20
    for cls in own:
        error = cls.__new__(cls)
        error.args = ("It is wrong.",)
        assert str(error) == f"It is wrong. [docs: errors#{cls.__name__.lower()}]"
        assert f"\n## {cls.__name__}\n" in read("errors.md")


def test_every_setting_is_there() -> None:
    assert REFERENCE / "settings.md" in pages_with("setting")
    for page in pages_with("setting"):
        text = page.read_text()
        column = re.findall(r"^\| setting \| (.*) \|$", text, re.MULTILINE)[0].split(" | ")
        index = column.index("default")
        defaults = {key: value_of(row[index]) for key, row in table(text, "setting").items()}
        assert list(defaults) == list(_SETTINGS)
        for key, value in defaults.items():  # each by itself: no two may make up for each other
            assert Settings.from_config({key: value}) == Settings(), key


def test_every_option_is_there() -> None:
    assert REFERENCE / "options.md" in pages_with("option")
    for page in pages_with("option"):
        text = page.read_text()
        column = re.findall(r"^\| option \| (.*) \|$", text, re.MULTILINE)[0].split(" | ")
        index = column.index("default")
        defaults = {key: value_of(row[index]) for key, row in table(text, "option").items()}
        assert list(defaults) == list(OPTIONS)
        assert defaults.pop("max_retries") == Settings().max_retries
        for option, value in defaults.items():
            assert StepOptions.from_mapping("a step", {option: value}) == StepOptions(), option
    assert set(table(read("options.md"), "Celery's option")) == CELERY_OPTIONS.keys()


def test_every_command_is_there() -> None:
    text = read("commands.md")
    assert headings("commands.md") == {f"flask sequence {name}" for name in sequence_cli.commands}
    for name, command in sequence_cli.commands.items():
        section = text.partition(f"## `flask sequence {name}`\n")[2].partition("\n## ")[0]
        assert f"Usage: flask sequence {name}" in section
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.opts[-1] in section, f"{name} {parameter.name}"


def test_every_status_is_there() -> None:
    text = read("statuses.md").replace("## Of an attempt", "\n")
    told = dict.fromkeys(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(told) == {str(status) for kind in (Status, StepStatus) for status in kind}
    drawing = (DOCS / "images" / "statuses.svg").read_text()
    assert all(f">{status}</text>" in drawing for status in Status)
    arrows = drawing.count('class="arrow"') - 1  # one leads to the first status
    assert arrows == sum(map(len, MOVES.values()))


def test_every_column_is_there() -> None:
    text = read("tables.md")
    for model in MODELS:
        section = text.partition(f"## `{model.__tablename__}`\n")[2].partition("\n## ")[0]
        assert set(table(section, "column")) == set(model.__table__.columns.keys())


def test_every_table_of_moves_is_that_of_the_code() -> None:
    told_somewhere = False
    for page in PAGES:
        if "| status |" in page.read_text() and "| moves to |" in page.read_text():
            rows = table(page.read_text().split("## Of an attempt")[0], "status")
            told = {
                Status(name): set(re.findall(r"`(\w+)`", row[-1])) for name, row in rows.items()
            }
            assert told == {status: set(map(str, moves)) for status, moves in MOVES.items()}
            told_somewhere = True
    assert told_somewhere


def test_only_what_is_public_is_told_to_be_imported() -> None:
    names = {*vars(flask_sequence), *testing.__all__, "embedded_config"}
    for page in PAGES:
        for line in re.findall(
            r"^from flask_sequence(?:\.\w+)* import (.*)", page.read_text(), re.M
        ):
            assert {name.strip() for name in line.strip("()").split(",") if name.strip()} <= names
