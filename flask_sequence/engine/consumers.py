"""Whether anybody is there who takes what waits, or works: what a person is told where not."""

from __future__ import annotations

import shlex
import typing as t

from ..rows import reads
from ..rows.models import SequenceRun
from ..rows.reads import Holder, Living
from ..runtime import current_runtime
from ..status import Status
from .connections import connection_of
from .processes import here, is_alive

START = "flask sequence worker"
"""The command that starts a worker."""


def no_consumer(workers: t.Collection[Living], queue: str, default: str) -> str | None:
    """Say that no living worker consumes a queue, and what to do; None: one does, perhaps.

    :param workers: The workers that count as alive.
    :param queue: The name of the queue.
    :param default: The name of the queue that a worker consumes without being told so.
    """
    consuming = [each for each in workers if each.queues is None or each.queues]
    if any(each.queues is None or queue in each.queues for each in consuming):
        return None
    option = "" if queue == default else f" -Q {shlex.quote(queue)}"
    if consuming:
        return f"No running worker consumes the queue {queue!r}: start one with '{START}{option}'."
    return f"No worker is running: start one with '{START}{option}'."


def lost(held: Holder | None, pid: int | None, *, sweep: float | None) -> str | None:
    """Say that the process which performs a run seems to be gone, and what follows; None: it lives.

    :param held: Its worker, if there is a row of it.
    :param pid: The process.
    :param sweep: Seconds from sweep to sweep.
    """
    pause = sweep or 0.0
    if held is None or held.lease <= 0:
        return (
            f"Its worker is gone: another one, if any is running, takes the run over within"
            f" {pause:g} s."
        )
    if held.place is None or held.place != here() or pid is None or is_alive(pid):
        return None
    if is_alive(held.pid):
        return "Its process is gone: its worker takes the run over within 3 s."
    wait = held.lease + pause
    return (
        f"Its worker is gone: another one on this host takes the run over within {pause:g} s, or"
        f" one elsewhere in {wait:.0f} s, once its lease (SEQUENCE_LEASE_SECONDS) is over."
    )


def missing_workers(rows: t.Iterable[t.Any]) -> list[str]:
    """Say which workers are missing for runs that wait, and how to start them.

    :param rows: The runs, with their ``status`` and ``queue``.
    """
    runtime = current_runtime()
    queues = sorted({row.queue for row in rows if row.status is Status.WAITING})
    if not queues or runtime.is_eager:
        return []
    workers = reads.living_workers(connection_of(runtime.db.session()))
    told = (no_consumer(workers, queue, runtime.default_queue) for queue in queues)
    return [text for text in told if text is not None]


def holder_of(run: SequenceRun) -> tuple[str, str | None]:
    """Say which process performs a run, and whether that seems to be gone, and what follows then.

    :param run: A run that is performed.
    """
    runtime = current_runtime()
    held = reads.holder(connection_of(runtime.db.session()), run.worker_id)
    label = f"{held.host if held else '?'}:{run.pid}"
    return label, lost(held, run.pid, sweep=runtime.settings.sweep_seconds)
