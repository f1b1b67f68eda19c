"""What the site has besides the Markdown that a forge shows.

Comments in a page, which a forge does not show, say what the site shows there:

- ``<!-- site`` to ``-->`` holds Markdown for the site only, such as its directives;
- between ``<!-- forge -->`` and ``<!-- end forge -->`` stands what is left out of the site;
- ``<!-- include ../README.md -->`` takes in a file that lies above ``docs/``.
"""

from __future__ import annotations

import posixpath
import re
import typing as t
from pathlib import Path

from sphinx_click.ext import ClickDirective

if t.TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "guide/contributing.md",
    "SECURITY.md": "guide/security.md",
    "CODE_OF_CONDUCT.md": "guide/contributing.md",
}
"""The files above docs/ that are pages of the site."""


def for_site(page: str, text: str) -> str:
    """Make what the site shows of a page.

    :param page: Its path in docs/.
    :param text: The Markdown as it is in the repository.
    :return: The Markdown for Sphinx.
    """
    text = re.sub(r"<!-- forge -->.*?<!-- end forge -->", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- site\n(.*?)\n-->", r"\1", text, flags=re.DOTALL)
    folder = posixpath.dirname(page)
    text = re.sub(
        r"<!-- include \.\./(\S+) -->", lambda found: _included(found[1], page, folder), text
    )
    return _relinked(text, posixpath.join("docs", folder), folder)


def _included(name: str, page: str, folder: str) -> str:
    return _relinked((DOCS.parent / name).read_text("utf-8"), "", folder)


def _relinked(text: str, source: str, folder: str) -> str:
    """Make the links of a text, which lies in one folder of the repository, those of a page."""

    def link(found: re.Match[str]) -> str:
        path, hash_, anchor = found[2].partition("#")
        if "://" in path or not path:
            return found[0]
        target = posixpath.normpath(posixpath.join(source, path))
        if target.endswith(".md") and "/" not in target and target not in MOVED:
            file = posixpath.relpath(target, posixpath.join("docs", folder))
            return f"{found[1]}path:{file})"  # a file to download, not a page
        moved = MOVED.get(target, posixpath.relpath(target, "docs"))
        return f"{found[1]}{posixpath.relpath(moved, folder or '.')}{hash_}{anchor})"

    return re.sub(r"(\]\()(?!mailto:)([^)\s]+)\)", link, text)


class Command(ClickDirective):  # type: ignore[misc]
    """A command, below a heading of the page's own."""

    def run(self) -> t.Sequence[nodes.Node]:
        """Give what stands below the title."""
        (section,) = super().run()
        return t.cast("nodes.Element", section).children[1:]


def setup(app: Sphinx) -> dict[str, bool]:
    """Have Sphinx read the pages so."""
    app.add_directive("command", Command)

    def read(_app: Sphinx, page: str, source: list[str]) -> None:
        source[0] = for_site(page, source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
