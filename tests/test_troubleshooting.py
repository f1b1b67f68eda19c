"""The messages in docs/guide/troubleshooting.md are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
OURS = PAGE.partition("## By message")[2].partition("### Of Celery")[0]
TEXTS = [
    node.value
    for path in (ROOT / "flask_sequence").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]


@pytest.mark.parametrize("message", re.findall(r"^\| `([^`]+)`", OURS, re.MULTILINE))
def test_a_message_is_one_of_the_code(message: str) -> None:
    parts = [part.strip(" ,:;.()") for part in re.split("…|: ", message)]
    assert any(parts)
    for part in filter(None, parts):
        assert any(part in text for text in TEXTS), part
