"""What a duty of the keeper is."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ...config import Settings
from ..post import Post

Work = t.Callable[[], float | None]
"""One pass of a duty. It gives the seconds after which it has to go on; None: its interval."""


def _never(post: Post) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Duty:
    """Something that a keeper does from time to time, and by itself: it depends on no other.

    :param name: What it does, as it is named in the log.
    :param begin: Makes what does it, for a keeper that begins; that may remember something.
    :param interval: Gives the seconds from pass to pass; None: not in this worker.
    :param seconds: How long one pass may take.
    :param rows: How many rows one pass may read.
    :param retry: Seconds after which it is tried again if it failed; None: its interval.
    :param is_called: Tells whether something asks for it before its time; it must cost nothing.
    :param is_urgent: Whether it waits for one other duty at most, and not for a whole round.
    """

    name: str
    begin: t.Callable[[Post], Work]
    interval: t.Callable[[Settings], float | None]
    seconds: float
    rows: int
    retry: float | None = None
    is_called: t.Callable[[Post], bool] = _never
    is_urgent: bool = False
