"""The children of a pool: which of them live."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from flask_sequence.worker.children import live_processes
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


@pytest.mark.parametrize("pool", [None, SimpleNamespace(), SimpleNamespace(_pool=None)])
def test_a_pool_without_processes_has_none(pool: object) -> None:
    assert live_processes(pool) == set()
