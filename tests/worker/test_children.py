"""The children of a pool: which of them live."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from types import SimpleNamespace

import pytest
from celery.concurrency.prefork import CLOSE  # type: ignore[attr-defined]

from flask_sequence.worker.children import let_unheard_end, live_processes
from flask_sequence.worker.duties.shutdown import LetChildrenEnd
from tests.support.waiting import wait_until


def pool_of(*pids: int | None) -> SimpleNamespace:
    processes = [SimpleNamespace(pid=pid, exitcode=None) for pid in pids]
    return SimpleNamespace(_pool=SimpleNamespace(_pool=processes))


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="looks at exitcode there")
def test_live_are_those_that_have_not_ended() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        about_to_be_forked = None
        pool = pool_of(child.pid, about_to_be_forked, os.getpid())  # no child of its own
        assert live_processes(pool) == {child.pid}
        child.kill()
        wait_until(lambda: live_processes(pool) == set())


def test_where_nobody_can_be_waited_for_the_pool_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid", raising=False)
    pool = pool_of(7, 8)
    pool._pool._pool[1].exitcode = -9
    assert live_processes(pool) == {7}


@pytest.mark.parametrize("is_stopping", [True, False])
def test_children_that_nobody_hears_end_once_the_worker_is_asked_to_stop(is_stopping: bool) -> None:
    counters = {7: SimpleNamespace(value=0), 8: SimpleNamespace(value=3)}
    inner = SimpleNamespace(_state=CLOSE, _cache={}, _on_ready_counters=counters)
    post: t.Any = SimpleNamespace(
        runtime=SimpleNamespace(is_stopping=is_stopping), pool=SimpleNamespace(_pool=inner)
    )
    LetChildrenEnd(post)()
    assert [counter.value > 1000 for counter in counters.values()] == [is_stopping] * 2


@pytest.mark.parametrize("left", [{"_state": 0}, {"_cache": {1: "job"}}])
def test_children_are_heard_until_the_last_of_their_results(left: dict[str, t.Any]) -> None:
    counter = SimpleNamespace(value=0)
    whole = {"_state": CLOSE, "_cache": {}, "_on_ready_counters": {7: counter}, **left}
    let_unheard_end(SimpleNamespace(_pool=SimpleNamespace(**whole)))
    assert counter.value == 0


@pytest.mark.parametrize("pool", [None, SimpleNamespace(), SimpleNamespace(_pool=None)])
def test_a_pool_without_processes_has_none(pool: object) -> None:
    assert live_processes(pool) == set()
