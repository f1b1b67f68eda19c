"""The README and the quickstart have the same application, and three lines move it to servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
LOOK = """
from app import create_app, db
from flask_sequence import celery_app

app = create_app()
with app.app_context():
    print(db.engine.dialect.name, celery_app(app).conf.broker_url)
"""


def blocks(page: Path, language: str) -> list[str]:
    """Give the blocks of code on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_quickstart_has_the_application_of_the_readme() -> None:
    applications = [blocks(page, "python") for page in PAGES]
    assert applications[0] == applications[1]
    assert [block.partition("\n")[0] for block in applications[0]] == ["# app.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_three_lines_move_it_to_servers(page: Path, tmp_path: Path) -> None:
    (application,), (diff,) = blocks(page, "python"), blocks(page, "diff")
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    assert len([line for line in lines if line[0] in "+-"]) == 3
    assert before in application
    (tmp_path / "app.py").write_text(application.replace(before, after))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    printed = subprocess.check_output(
        [sys.executable, "-W", "error", "-c", LOOK],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=60,
    )
    assert printed == "postgresql redis://localhost:6379/0\n"
