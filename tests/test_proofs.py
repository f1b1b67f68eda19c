"""What the pages name as a proof exists, and figures that follow from the code are right."""

from __future__ import annotations

import re
from pathlib import Path

from flask_sequence.config import Settings
from flask_sequence.definition.retry import RetryPolicy
from flask_sequence.worker.duties import DUTIES

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}


def test_each_test_that_a_page_names_is_there() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(r"\btests/[\w/.]*\w", text)}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_each_promise_names_its_proof() -> None:
    page = TEXTS[ROOT / "docs" / "explanation" / "guarantees.md"]
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
    page = TEXTS[ROOT / "docs" / "explanation" / "how-it-works.md"]
    section = page.partition("## The keeper")[2].partition("\n## ")[0]
    told = re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)
    assert told[2:] == [duty.name for duty in DUTIES]
    assert "thirteen duties" in section
    assert len(DUTIES) == 13
