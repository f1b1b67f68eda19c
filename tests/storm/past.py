"""Runs that ended long ago: during a storm one after the other is old enough to be purged.

A row of the application refers to each, and strangers refer to them and lock these rows.
"""

from __future__ import annotations

import datetime

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.rows.models import runs
from tests.storm.place import Options
from tests.storm.tables import StormPaper
from tests.support.filling import fill, now

SEQUENCE = "Filled0"
RETENTION = datetime.timedelta(days=7)
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
        finished_at = now(connection, f"{options.seconds} * i / {options.past}")
    fill(engine, options.past, Status.FINISHED, sequences=1, finished_at=finished_at)
    end = sa.update(runs).where(runs.c.id == sa.bindparam("run"))
    with engine.begin() as connection:
        past = connection.execute(sa.select(runs.c.id, runs.c.finished_at).where(IS_PAST)).all()
        papers = [{"run_id": row.id, "marker": f"p-{row.id}", "step": 0, "loop": 0} for row in past]
        connection.execute(sa.insert(StormPaper), papers)
        # Not before: they may be purged from now on.
        ends = [{"run": row.id, "finished_at": row.finished_at - RETENTION} for row in past]
        connection.execute(end, ends)
    return {paper["marker"] for paper in papers}
