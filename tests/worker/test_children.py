"""Which processes of a worker's pool live."""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t
from types import SimpleNamespace

import pytest

from flask_sequence.worker.children import live_processes
from tests.support.waiting import wait_until


def pool_of(*pids: int | None) -> SimpleNamespace:
    """Return what Celery's pool tells of its processes."""
    processes = [SimpleNamespace(pid=pid, exitcode=None) for pid in pids]
    return SimpleNamespace(_pool=SimpleNamespace(_pool=processes))


def has_ended(pid: int) -> bool:
    """Tell whether a child has ended, and leave it to be reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.fixture
def child() -> t.Iterator[int]:
    """A child that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    with contextlib.suppress(ChildProcessError):  # it may have been reaped
        if not has_ended(pid):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_child_lives_until_it_has_ended(child: int) -> None:
    pool = pool_of(child)
    assert live_processes(pool) == {child}
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: has_ended(child))
    assert live_processes(pool) == set()
    os.waitpid(child, 0)
    assert live_processes(pool) == set()


def test_one_that_is_about_to_be_forked_hides_no_other(child: int) -> None:
    assert live_processes(pool_of(None, child)) == {child}


def test_a_pool_without_processes_has_none() -> None:
    assert live_processes(SimpleNamespace()) == live_processes(pool_of()) == set()
