"""The child processes of a worker's pool: which of them live, and when they may end."""

from __future__ import annotations

import os
import typing as t

from celery.concurrency.prefork import CLOSE  # type: ignore[attr-defined]

_HEARD = 2**30
"""More results than a child ever waits to have been read."""


def live_processes(pool: t.Any) -> set[int]:
    """Give the process ids of a pool's children that have not ended.

    :param pool: Celery's pool.
    """
    processes = getattr(getattr(pool, "_pool", None), "_pool", None) or ()
    return {process.pid for process in list(processes) if _is_alive(process)}


def _is_alive(process: t.Any) -> bool:
    if process.pid is None:
        return False  # the pool is about to fork it
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.exitcode is None
    try:
        # Looks, and leaves it to the pool to reap.
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is None
    except ChildProcessError:
        return False


def let_unheard_end(pool: t.Any) -> None:
    """Let the children of a pool end once a warm shutdown has read the last of their results.

    As it begins, Celery forgets the jobs that it has sent to a child and that have not been
    acknowledged; it reads results until it knows of no job. A child that has performed a forgotten
    one would wait half a minute for its result to be read.

    :param pool: Celery's pool.
    """
    inner = getattr(pool, "_pool", None)
    if getattr(inner, "_state", None) != CLOSE or getattr(inner, "_cache", None):
        return
    for counter in list(getattr(inner, "_on_ready_counters", {}).values()):
        counter.value = _HEARD
