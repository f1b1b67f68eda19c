"""What processes held that are gone: it is taken from them, as a crash of their step."""

from __future__ import annotations

import functools
import logging
import os
import time
import typing as t

from ...definition.retry import crash_delay
from ...engine.known_steps import options_of
from ...engine.processes import here, is_alive
from ...failures import one_line
from ...rows import moves, reads
from ...rows.claims import Held
from ..children import live_processes
from ..post import Post
from .batches import Batches

if t.TYPE_CHECKING:
    import sqlalchemy as sa

    from ...runtime import Runtime

logger: logging.Logger = logging.getLogger("flask_sequence")

FREED_AT_ONCE = 50
"""How many runs of dead processes one transaction takes up."""
WATCH_SECONDS = 5.0
"""For how long a child's last commit may still arrive after its end."""
CLAIM_SECONDS = 0.2
"""How long a claim may take after Celery has begun to count a time limit."""
GONE = "the worker that ran the step is gone"
AGAIN_SECONDS = 0.5
"""After how long a pass is followed by another one if it did not come to the end."""


class Reader(t.Protocol):
    """Reads what processes hold, in the order of the ids."""

    def __call__(self, connection: sa.Connection, *, after: int, limit: int) -> list[Held]:
        """Read what follows an id."""


class Freeing:
    """Takes runs from processes that are gone; a pass goes on where the last one has stopped.

    :param post: The keeper's.
    :param reason: What happened to the processes, for ``run.error``.
    """

    def __init__(self, post: Post, reason: str) -> None:
        self._post = post
        self._reason = reason
        self._batches: Batches[Held] = Batches(post, FREED_AT_ONCE)
        self._after = 0

    @property
    def is_through(self) -> bool:
        """Whether it has come to the last run that was read, and begins with the first again."""
        return self._after == 0

    def go_on(
        self,
        read: Reader,
        choose: t.Callable[[list[Held]], list[Held]] = lambda held: held,
    ) -> bool:
        """Free what nobody has locked; what is freed first is published at once.

        :param read: Reads what is held.
        :param choose: Chooses from it what dead processes hold.
        :return: Whether all was read, and nothing is left of it.
        :raises Exception: What kept it from freeing any of them.
        """
        is_first, limit = self.is_through, self._post.rows
        with self._post.connect() as connection:
            held = read(connection, after=self._after, limit=limit)
        dead, freed = choose(held), 0
        for batch in self._batches.each(dead, self._free_batch):
            freed += len(batch)
            self._publish(batch)
        rest = self._batches.rest
        self._after = held[-1].id if len(held) == limit else 0
        if rest:
            self._after = rest[0].id - 1
        for claim, error in self._batches.refused:
            if self._post.is_new((claim.id, claim.version)):
                logger.error("%s cannot be taken over: %s", _place(claim), one_line(error))
        self._batches.check()
        return is_first and self.is_through and freed == len(dead)

    def _free_batch(
        self, connection: sa.Connection, batch: t.Sequence[Held]
    ) -> list[tuple[Held, float | None]]:
        unlocked = set(reads.lock(connection, [claim.id for claim in batch]))
        runtime, freed = self._post.runtime, []
        hosts = reads.hosts_of(connection, {claim.worker_id for claim in batch})
        for claim in batch:
            delay = crash_delay(claim.crashes + 1, most=runtime.settings.max_crashes)
            error = _crash_text(runtime, claim, self._reason)
            worker_id = claim.worker_id or "?"
            label = f"{hosts.get(worker_id, worker_id)}:{claim.pid}"
            crash = moves.crash(claim, delay=delay, error=error, label=label)
            if claim.id in unlocked and moves.make(connection, claim, crash):
                freed.append((claim, delay))
        return freed

    def _publish(self, freed: t.Sequence[tuple[Held, float | None]]) -> None:
        runtime, nudges = self._post.runtime, []
        for claim, delay in freed:
            level = logging.ERROR if delay is None else logging.WARNING
            what = "failed" if delay is None else f"runs again in {delay:.1f} s"
            error = _crash_text(runtime, claim, self._reason)
            logger.log(level, "%s, %s: %s", _place(claim), what, error)
            options = options_of(claim.sequence, claim.step)
            if delay is not None and options is not None and runtime.rides(delay):
                version = claim.version + 1
                nudges.append(runtime.nudge(claim, options, version=version, countdown=delay))
        self._post.publish(nudges)


def _place(claim: Held) -> str:
    return f"Run {claim.id}, step {claim.sequence}.{claim.step}, attempt {claim.attempt}"


def _crash_text(runtime: Runtime, claim: Held, reason: str) -> str:
    options = options_of(claim.sequence, claim.step)
    limit = (options and options.time_limit) or runtime.time_limit
    # Celery counts from before the claim.
    text = f"Crash: {reason}"
    if limit is not None and claim.held_seconds >= limit - CLAIM_SECONDS:
        text = f"TimeLimitExceeded: the step took longer than its time limit of {limit:g} s"
    crashes, most = claim.crashes + 1, runtime.settings.max_crashes
    named = ": as many as SEQUENCE_MAX_CRASHES allows" if crashes >= most else ""
    return f"{text} (crash {crashes} of {most}{named})"


class FreeOwn:
    """Frees what dead processes of this worker held.

    It looks when a process has gone, and once each interval of the sweep. The watch over what a
    process held lasts until its last commit must have arrived, and nothing of it is left.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._freeing = Freeing(post, "the process that ran the step died")
        self._children: set[int] = set()
        self._watch_until: float | None = None
        self._look_at = 0.0

    def __call__(self) -> None:
        """Look after the processes."""
        began = time.monotonic()
        children = live_processes(self._post.pool)
        if children != self._children:  # of a child that lived shortly only the next one is seen
            self._watch_until = began + WATCH_SECONDS
            self._replace_dead()
        self._children = children
        if self._watch_until is None and began < self._look_at:
            return
        read = functools.partial(reads.held_by, worker_id=self._post.worker_id)
        if not self._freeing.go_on(read, self._of_dead):
            return
        settings = self._post.runtime.settings
        self._look_at = began + (settings.sweep_seconds or settings.lease_seconds)
        if self._watch_until is not None and began >= self._watch_until:
            self._watch_until = None

    def _of_dead(self, held: list[Held]) -> list[Held]:
        alive = live_processes(self._post.pool) | {os.getpid()}  # read after the claims
        return [claim for claim in held if claim.pid not in alive]

    def _replace_dead(self) -> None:
        # Celery's event loop is told when the child's files are closed, often a moment before it
        # can be reaped, and then looks again only after five seconds.
        hub = getattr(self._post.consumer, "hub", None)
        if hub is not None and self._children:
            hub.call_soon(self._post.pool.maintain_pool)


class FreeOrphans:
    """Frees what workers held that no longer count as alive."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._freeing = Freeing(post, GONE)

    def __call__(self) -> float | None:
        """Free some."""
        self._freeing.go_on(reads.orphans, self._of_others)
        return None if self._freeing.is_through else AGAIN_SECONDS

    def _of_others(self, held: list[Held]) -> list[Held]:
        # This worker lives: after an outage it may only not have been able to say so yet.
        return [claim for claim in held if claim.worker_id != self._post.worker_id]


class FreeNeighbours:
    """Frees what workers of this host held whose processes are gone: it need not wait for a lease.

    What a process still performs though its worker is gone is left to it, until the lease is over.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._freeing: dict[str, Freeing] = {}

    def __call__(self) -> None:
        """Look once."""
        with self._post.connect() as connection:
            workers = reads.living_workers(connection)
        gone = [
            each.id
            for each in workers
            if each.place is not None
            and each.place == here()
            and each.id != self._post.worker_id
            and not is_alive(each.pid)
        ]
        self._freeing = {
            worker_id: self._freeing.get(worker_id) or Freeing(self._post, GONE)
            for worker_id in gone
        }
        for worker_id, freeing in self._freeing.items():
            freeing.go_on(functools.partial(reads.held_by, worker_id=worker_id), _of_gone)


def _of_gone(held: list[Held]) -> list[Held]:
    return [claim for claim in held if claim.pid is not None and not is_alive(claim.pid)]


class TakeBack:
    """Takes back what living processes of this worker hold and do not work on.

    Something was raised between the claim and the step, or a run could not be handed back. What is
    found so in two looks, one after the other, is taken back as after a crash.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._freeing = Freeing(post, "the process that claimed the step does not run it")
        self._suspected: set[tuple[int, int]] = set()

    def __call__(self) -> None:
        """Look once."""
        if self._post.runtime.worker is None:
            return
        seen: set[tuple[int, int]] = set()
        read = functools.partial(reads.held_by, worker_id=self._post.worker_id)
        self._freeing.go_on(read, lambda held: self._left(held, seen))
        self._suspected = seen

    def _left(self, held: list[Held], seen: set[tuple[int, int]]) -> list[Held]:
        worker = self._post.runtime.worker
        assert worker is not None
        alive = live_processes(self._post.pool) | {os.getpid()}
        left = [
            claim
            for claim in held
            if claim.pid in alive and worker.in_hand.is_without_hand(claim.pid, claim.id)
        ]
        seen.update((claim.id, claim.version) for claim in left)
        return [claim for claim in left if (claim.id, claim.version) in self._suspected]
