"""The rows of workers."""

from __future__ import annotations

import sqlalchemy as sa

from flask_sequence.rows import upkeep
from flask_sequence.rows.dialects import clock, later
from flask_sequence.rows.models import runs
from tests.support.stepping import Stepping


def test_workers_are_renewed_and_removed(stepping: Stepping) -> None:
    def is_alive(connection: sa.Connection, name: str) -> bool:
        until = sa.select(sa.column("seen_until", runs.c.due_at.type) > clock())
        table = sa.table("sequence_workers", sa.column("id"))
        found = connection.execute(until.select_from(table).where(table.c.id == name)).scalar()
        return bool(found)

    with stepping.connect() as connection:
        upkeep.renew_worker(connection, "w", host="h", pid=1, lease=-1)
        assert not is_alive(connection, "w")
        upkeep.renew_worker(connection, "w", host="h", pid=1, lease=30)
        assert is_alive(connection, "w")
        upkeep.remove_worker(connection, "w")
        assert not is_alive(connection, "w")
        assert connection.scalar(sa.select(later(1) > clock()))
