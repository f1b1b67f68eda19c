"""A run that a process holds, as a value, and what proves that it does."""

from __future__ import annotations

import datetime
import typing as t
import uuid

import sqlalchemy as sa

from ..status import Status
from .columns import plain_text
from .dialects import clock
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
    text: str
    """The data, as JSON: where they cannot be read, the step fails, not the claim."""
    key: str | None
    options: t.Mapping[str, t.Any] | None
    attempt: int
    retries: int
    crashes: int
    version: int
    worker_id: str | None
    pid: int | None
    created_at: datetime.datetime
    step_started_at: datetime.datetime
    now: datetime.datetime
    """The database's clock when the row was read."""

    @property
    def held_seconds(self) -> float:
        """How long the step had been performed when the row was read."""
        return (self.now - self.step_started_at).total_seconds()


_COMPUTED: dict[str, sa.ColumnElement[t.Any]] = {
    "now": clock().label("now"),
    "text": plain_text(runs.c.data).label("text"),
}
CLAIM_COLUMNS: tuple[sa.ColumnElement[t.Any], ...] = tuple(
    _COMPUTED[name] if name in _COMPUTED else runs.c[name] for name in Claim._fields
)
"""What is read for a claim."""


def holds(claim: Claim, row: Row) -> bool:
    """Tell whether a row is held by the process that made a claim."""
    holder = (row.status, row.worker_id, row.pid)
    return holder == (Status.RUNNING, claim.worker_id, claim.pid)


def is_known_format(row: Row) -> bool:
    """Tell whether a row was written in a form that this release knows."""
    return bool(EMPTIED < row.format <= FORMAT)
