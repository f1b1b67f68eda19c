"""A run that a process holds, as a value, and what proves that it does."""

from __future__ import annotations

import datetime
import os
import typing as t
import uuid

import sqlalchemy as sa

from ..definition.data import decode_text
from ..status import Status
from .columns import plain_text
from .dialects import clock, readable
from .models import EMPTIED, FORMAT, runs

if t.TYPE_CHECKING:
    Row = t.Any  # SQLAlchemy 2.0 and 2.1 differ in how a row is typed
else:
    Row = sa.Row


class Claim(t.NamedTuple):
    """A run that this process holds: its row, as of the version that proves it."""

    id: int
    uid: uuid.UUID
    sequence: str
    step: str
    data: str
    """The data, as JSON: where it cannot be read, the step fails, not the claim."""
    key: str | None
    options: t.Mapping[str, t.Any] | None
    attempt: int
    retries: int
    crashes: int
    waits: int
    version: int
    worker_id: str | None
    pid: int | None
    created_at: datetime.datetime
    step_started_at: datetime.datetime
    now: datetime.datetime
    """The database's clock when the row was read."""

    @property
    def is_mine(self) -> bool:
        """Whether it was made by this process, and not by one that it has been forked from."""
        return self.pid == os.getpid()

    def moved(self) -> Claim:
        """Return the claim as of a move that was made for it."""
        return self._replace(version=self.version + 1)

    @property
    def held_seconds(self) -> float:
        """How long the step had been performed when the row was read."""
        return (self.now - self.step_started_at).total_seconds()


class Held(t.NamedTuple):
    """What is read of a run that some process holds, to take it from that: none of its data."""

    id: int
    sequence: str
    step: str
    options: t.Mapping[str, t.Any] | None
    attempt: int
    crashes: int
    version: int
    worker_id: str | None
    pid: int | None
    step_started_at: datetime.datetime
    now: datetime.datetime
    """The database's clock when the row was read."""

    @property
    def held_seconds(self) -> float:
        """How long the step had been performed when the row was read."""
        return (self.now - self.step_started_at).total_seconds()


def held_of(row: Row) -> Held:
    """Make it of a row of ``HELD_COLUMNS``."""
    held = Held(*row)
    return held._replace(options=readable_options(t.cast("str | None", held.options)))


def readable_options(text: str | None) -> dict[str, t.Any] | None:
    """Decode what ``set()`` chose for a run; None, too, where it cannot be read.

    One such row must not keep the keeper from all others.

    :param text: The column, as text.
    """
    try:
        return None if text is None else decode_text(text)
    except Exception:
        return None


_COMPUTED: dict[str, sa.ColumnElement[t.Any]] = {
    "now": clock().label("now"),
    "data": plain_text(runs.c.data).label("data"),
}
CLAIM_COLUMNS: tuple[sa.ColumnElement[t.Any], ...] = tuple(
    _COMPUTED[name] if name in _COMPUTED else runs.c[name] for name in Claim._fields
)
"""What is read for a claim."""

OPTIONS_TEXT: sa.ColumnElement[str] = plain_text(runs.c.options).label("options")
"""The options of a run, which nobody has decoded yet."""
_SAFE: dict[str, sa.ColumnElement[t.Any]] = {
    "options": OPTIONS_TEXT,
    "step_started_at": readable(runs.c.step_started_at),
    "now": _COMPUTED["now"],
}
HELD_COLUMNS: tuple[sa.ColumnElement[t.Any], ...] = tuple(
    _SAFE[name] if name in _SAFE else runs.c[name] for name in Held._fields
)
"""What is read for a ``Held``."""
IS_KNOWN_FORMAT: sa.ColumnElement[bool] = runs.c.format.between(EMPTIED + 1, FORMAT)
"""Whether a row was written in a form that this release knows, and still has its data."""


def holds(claim: Claim, row: Row) -> bool:
    """Tell whether a row is held by the process that made a claim."""
    holder = (row.status, row.worker_id, row.pid)
    return holder == (Status.RUNNING, claim.worker_id, claim.pid)


def is_known_format(row: Row) -> bool:
    """Tell whether a row was written in a form that this release knows."""
    return bool(EMPTIED < row.format <= FORMAT)
