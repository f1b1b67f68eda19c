"""What the pages name as a proof exists, and figures that follow from the code are right."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
import typing as t
from pathlib import Path

import pytest

from flask_sequence.config import Settings
from flask_sequence.definition.retry import RetryPolicy
from flask_sequence.worker.duties import DUTIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUARANTEES = DOCS / "explanation" / "guarantees.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}


class Claim(t.NamedTuple):
    """What a page says, and the tests that would turn red if it were false."""

    page: str
    claim: str
    tests: list[str]


CLAIMS = [
    Claim(**{**claim, "claim": " ".join(claim["claim"].split())})
    for claim in tomllib.loads((ROOT / "tests" / "claims.toml").read_text("utf-8"))["claim"]
]


def test_each_test_that_a_page_names_is_there() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(r"\btests/[\w/.]*\w", text)}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_each_promise_names_its_proof() -> None:
    page = TEXTS[GUARANTEES]
    promised = page.partition("## What is promised")[2].partition("\n## ")[0]
    promises = promised.split("\n### ")[1:]
    assert len(promises) == 10
    for promise in promises:
        assert "*Proof*:" in promise or "Measured" in promise, promise.splitlines()[0]


def test_a_dead_worker_is_replaced_within_what_the_pages_say() -> None:
    settings = Settings()
    assert settings.sweep_seconds is not None
    seconds = settings.lease_seconds + settings.sweep_seconds + 2
    told = [re.findall(r"within (\d+) s by default", text) for text in TEXTS.values()]
    assert {int(each) for found in told for each in found} == {seconds}


def test_a_step_that_always_fails_is_given_up_when_the_pages_say() -> None:
    policy, limit = RetryPolicy(jitter=False), Settings().max_retries
    assert limit is not None
    delays = [policy.delay(retries, default_limit=limit) for retries in range(limit)]
    longest = sum(delay or 0.0 for delay in delays) / 3600
    told = {
        found
        for text in TEXTS.values()
        for found in re.findall(r"([\d.]+) to ([\d.]+)\s+hours", text)
    }
    assert told == {(f"{longest / 2:.1f}", f"{longest:.1f}")}


def test_each_duty_of_the_keeper_is_told() -> None:
    page = TEXTS[DOCS / "explanation" / "how-it-works.md"]
    section = page.partition("## The keeper")[2].partition("\n## ")[0]
    told = re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)
    assert told[2:] == [duty.name for duty in DUTIES]
    assert "thirteen duties" in section
    assert len(DUTIES) == 13
    texts = TEXTS.values()
    counted = {word for text in texts for word in re.findall(r"(?<!')\b([a-z]+) duties", text)}
    assert counted == {"thirteen"}


def test_the_readme_names_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = dict(text.lower().split(">=") for text in project["dependencies"])
    bounds["python"] = project["requires-python"].removeprefix(">=")
    (told,) = re.findall(r"^It needs (.*?)\.$", TEXTS[ROOT / "README.md"], re.M | re.S)
    named = re.findall(r"([A-Z][\w-]+) (\d[.\d]*)", told)
    assert [name for name, _ in named] == ["Python", "Flask", "Flask-SQLAlchemy", "Celery"]
    for name, version in named:
        assert f"{bounds[name.lower()]}.".startswith(f"{version}."), name


# Claims


@functools.cache
def flat(page: str) -> str:
    """Give the text of a page, whatever its lines are."""
    return " ".join(TEXTS[ROOT / page].split())


@functools.cache
def parsed(path: str) -> ast.Module:
    """Give the tree of a file of tests."""
    return ast.parse((ROOT / path).read_text("utf-8"))


def nodes_of(name: str) -> list[t.Any]:
    """Give the class, if there is one, and the function that a test's name leads to."""
    path, *parts = name.split("::")
    found, body = [], parsed(path).body
    for part in parts:
        node: t.Any = next((node for node in body if getattr(node, "name", None) == part), None)
        if node is None:
            return []
        found.append(node)
        body = node.body
    is_test = isinstance(found[-1], ast.FunctionDef) and found[-1].name.startswith("test_")
    return found if is_test else []


def is_skipped(name: str) -> bool:
    """Tell whether a test is never run."""
    marks = [mark for node in nodes_of(name) for mark in node.decorator_list]
    for node in parsed(name.partition("::")[0]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks.append(node.value)
    return any(re.search(r"\bmark\.(skip|xfail)\b", ast.unparse(mark)) for mark in marks)


@pytest.mark.parametrize("page", dict.fromkeys(claim.page for claim in CLAIMS))
def test_each_claim_stands_in_its_page_once_and_in_its_order(page: str) -> None:
    claims = [claim.claim for claim in CLAIMS if claim.page == page]
    assert [claim for claim in claims if flat(page).count(claim) != 1] == []
    assert claims == sorted(claims, key=flat(page).index)


def test_claims_follow_the_order_of_the_pages() -> None:
    listed = re.findall(r"\]\(([\w/-]+\.md)\)", TEXTS[DOCS / "index.md"])
    pages = ["README.md", *(f"docs/{page}" for page in listed)]
    assert [claim.page for claim in CLAIMS] == sorted(
        (claim.page for claim in CLAIMS), key=pages.index
    )


def test_no_claim_is_listed_twice() -> None:
    listed = [(claim.page, claim.claim) for claim in CLAIMS]
    assert [claim for claim in listed if listed.count(claim) > 1] == []


def test_each_claim_has_a_test_that_is_there_and_runs() -> None:
    assert [claim for claim in CLAIMS if not claim.tests] == []
    named = sorted({test for claim in CLAIMS for test in claim.tests})
    assert [name for name in named if not nodes_of(name)] == []
    assert [name for name in named if is_skipped(name)] == []


def is_claimed(page: str, part: str) -> bool:
    """Tell whether a claim stands in a part of a page."""
    text = " ".join(part.split())
    return any(claim.page == page and claim.claim in text for claim in CLAIMS)


def test_each_promise_is_a_claim() -> None:
    listed = TEXTS[ROOT / "README.md"].partition("## What you can rely on")[2].partition("\n## ")[0]
    promises = listed.partition("\nWhat is *not* promised")[0].split("\n- **")[1:]
    assert len(promises) == 5
    assert [promise for promise in promises if not is_claimed("README.md", promise)] == []


def test_each_guarantee_is_a_claim() -> None:
    promised = TEXTS[GUARANTEES].partition("## What is promised")[2].partition("\n## ")[0]
    page = str(GUARANTEES.relative_to(ROOT))
    guarantees = promised.split("\n### ")[1:]
    unclaimed = [part.splitlines()[0] for part in guarantees if not is_claimed(page, part)]
    assert unclaimed == []
