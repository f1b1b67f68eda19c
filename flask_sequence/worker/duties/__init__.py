"""The duties of a keeper, in the order in which they are done: recovery first, the purge last.

Each has a module of its own, or shares it with its like. To add one, write what does it, and put
it into the table.
"""

from __future__ import annotations

from ...config import Settings
from .code import NoticeChangedCode
from .duty import Duty
from .lease import RemoveGoneWorkers, RenewLease
from .publishing import PublishDue, is_called
from .purge import Purge
from .queues import FollowQueues
from .recovery import FreeNeighbours, FreeOrphans, FreeOwn, TakeBack
from .shutdown import LetChildrenEnd
from .unknown import BlockUnknown, UnblockKnown

LOOK_SECONDS = 0.5
"""How often the keeper looks after the processes of its worker."""


def _renewing(settings: Settings) -> float:
    return settings.lease_seconds / 3


def _looking(settings: Settings) -> float:
    return LOOK_SECONDS


def _looking_over(settings: Settings) -> float:
    return settings.sweep_seconds or settings.lease_seconds


def _sweeping(settings: Settings) -> float | None:
    return settings.sweep_seconds


def _tidying(settings: Settings) -> float | None:
    return None if settings.sweep_seconds is None else 60.0


RENEW_LEASE = Duty(
    name="renew the lease of its worker",
    begin=RenewLease,
    interval=_renewing,
    retry=LOOK_SECONDS,
    seconds=2.0,
    rows=1,
    is_urgent=True,
)
FREE_OWN = Duty(
    name="take over from dead processes of its worker",
    begin=FreeOwn,
    interval=_looking,
    seconds=2.0,
    rows=500,
)
TAKE_BACK = Duty(
    name="take back what nobody works on",
    begin=TakeBack,
    interval=_looking_over,
    seconds=2.0,
    rows=500,
)
FREE_NEIGHBOURS = Duty(
    name="take over from what has died on this host",
    begin=FreeNeighbours,
    interval=_sweeping,
    seconds=2.0,
    rows=500,
)
FREE_ORPHANS = Duty(
    name="take over from dead workers",
    begin=FreeOrphans,
    interval=_sweeping,
    seconds=2.0,
    rows=500,
)
PUBLISH_DUE = Duty(
    name="publish what is due",
    begin=PublishDue,
    interval=_sweeping,
    is_called=is_called,
    seconds=2.0,
    rows=1000,
)
LET_CHILDREN_END = Duty(
    name="let processes end in a shutdown",
    begin=LetChildrenEnd,
    interval=_looking,
    seconds=0.1,
    rows=0,
)
BLOCK_UNKNOWN = Duty(
    name="block what no worker knows",
    begin=BlockUnknown,
    interval=_sweeping,
    seconds=1.0,
    rows=1000,
)
UNBLOCK_KNOWN = Duty(
    name="unblock what is known again",
    begin=UnblockKnown,
    interval=_sweeping,
    seconds=1.0,
    rows=5000,
)
FOLLOW_QUEUES = Duty(
    name="look after queues that nobody consumes",
    begin=FollowQueues,
    interval=_sweeping,
    seconds=1.0,
    rows=1000,
)
REMOVE_GONE_WORKERS = Duty(
    name="remove the rows of dead workers",
    begin=RemoveGoneWorkers,
    interval=_tidying,
    seconds=1.0,
    rows=500,
)
NOTICE_CHANGED_CODE = Duty(
    name="notice code that has changed",
    begin=NoticeChangedCode,
    interval=_sweeping,
    seconds=1.0,
    rows=0,
)
PURGE = Duty(
    name="purge what ended long ago",
    begin=Purge,
    interval=_sweeping,
    seconds=1.0,
    rows=5000,
)

DUTIES: tuple[Duty, ...] = (
    RENEW_LEASE,
    FREE_OWN,
    TAKE_BACK,
    FREE_NEIGHBOURS,
    FREE_ORPHANS,
    PUBLISH_DUE,
    LET_CHILDREN_END,
    BLOCK_UNKNOWN,
    UNBLOCK_KNOWN,
    FOLLOW_QUEUES,
    REMOVE_GONE_WORKERS,
    NOTICE_CHANGED_CODE,
    PURGE,
)
"""Every duty, and their order."""
