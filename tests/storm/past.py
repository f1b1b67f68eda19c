"""Runs that ended long ago: during a storm one after the other is old enough to be purged.

A row of the application refers to each, and strangers refer to them and lock these rows.
"""

from __future__ import annotations

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.rows.models import runs
from tests.storm.place import Options
from tests.storm.tables import StormPaper
from tests.support.filling import fill, now

SEQUENCE = "Filled0"
RETENTION_SECONDS = 7 * 86_400
"""The default of SEQUENCE_RETENTION."""

IS_PAST = runs.c.sequence == SEQUENCE


def fill_past(engine: sa.Engine, options: Options) -> set[str]:
    """Insert them, and return the markers of the rows that refer to them.

    :param engine: Where to.
    :param options: The storm's.
    """
    if not options.has_strangers or options.past == 0:
        return set()
    with engine.begin() as connection:
        seconds = f"{options.seconds} * i / {options.past} - {RETENTION_SECONDS}"
        finished_at = now(connection, seconds)
    fill(engine, options.past, Status.FINISHED, sequences=1, finished_at=finished_at)
    with engine.begin() as connection:
        run_ids = connection.scalars(sa.select(runs.c.id).where(IS_PAST)).all()
        papers = [
            {"run_id": run_id, "marker": f"p-{run_id}", "step": 0, "loop": 0} for run_id in run_ids
        ]
        connection.execute(sa.insert(StormPaper), papers)
    return {paper["marker"] for paper in papers}
