"""The site can be built from docs/, without a warning, and works from a folder."""

from __future__ import annotations

import functools
import html.parser
import os
import subprocess
import sys
import typing as t
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.pages import DOCS, PAGES, ROOT


class Links(html.parser.HTMLParser):
    """What a page leads to, and what can be led to on it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        values = dict(attrs)
        self.anchors.add(values.get("id") or "")
        if tag in ("a", "img", "script", "link"):
            self.targets.append(values.get("href") or values.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as bin/docs builds it, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    script = (ROOT / "bin" / "docs").read_text()
    options = script.partition("exec .venv/bin/sphinx-build ")[2].partition("\\")[0].split()
    assert {"--fail-on-warning", "--nitpicky"} <= set(options)
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("DOCS_")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@functools.cache
def links_of(path: Path) -> Links:
    """Read a page of the site, once."""
    return Links(path)


def pages_of(site: Path) -> t.Iterator[Path]:
    """Give the pages that are made from docs/, not those of Sphinx's own."""
    for page in PAGES:
        if DOCS in page.parents:
            yield site / page.relative_to(DOCS).with_suffix(".html")


def test_it_has_every_page(site: Path) -> None:
    assert [page for page in pages_of(site) if not page.is_file()] == []
    assert (site / "404.html").is_file()


def test_it_works_from_a_folder(site: Path) -> None:
    for page in pages_of(site):
        for link in links_of(page).targets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            assert not parts.path.startswith("/"), f"{page}: {link}"
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), f"{page}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in links_of(target).anchors, f"{page}: {link}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("howto-deploy", "guide/deploy.html"),
        ("howto-testing", "guide/testing.html"),
        ("lifecycle", "explanation/lifecycle.html"),
        ("performance", "explanation/cost.html"),
        ("reliability", "explanation/guarantees.html"),
        ("reference", "reference/api.html"),
    ],
)
def test_an_old_name_leads_to_the_new_one(site: Path, old: str, new: str) -> None:
    assert f'"{new}"' in (site / f"{old}.html").read_text()
    assert (site / new).is_file()


def test_it_shows_what_a_forge_does_not(site: Path) -> None:
    api = (site / "reference" / "api.html").read_text()
    assert 'id="flask_sequence.BaseSequence.start_many"' in api
    assert "<!-- forge" not in api
