"""A move that travels with its COMMIT, in one message; only PostgreSQL has that."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from flask_sequence.rows import moves
from flask_sequence.rows.claims import Claim
from flask_sequence.rows.prepared import can_commit_along
from tests.support.stepping import Stepping, make_step


def claim(stepping: Stepping) -> Claim:
    run_id = stepping.start(make_step(lambda step: None))
    with stepping.connect() as connection:
        found = moves.claim(connection, run_id, 0, worker_id="w", pid=1)
    assert found is not None
    return found


def test_one_that_exceeds_a_limit_of_time_tells_that_the_statement_is_ours(
    postgresql_stepping: Stepping,
) -> None:
    mine = claim(postgresql_stepping)
    lock = sa.text("SELECT 1 FROM sequence_runs WHERE id = :id FOR UPDATE")
    with postgresql_stepping.connect() as stranger, postgresql_stepping.connect() as connection:
        stranger.execute(lock, {"id": mine.id})
        connection.exec_driver_sql("SET LOCAL statement_timeout = 50")
        assert can_commit_along(connection)
        with pytest.raises(sa.exc.OperationalError, match="statement timeout") as raised:
            moves.make_and_commit(connection, mine, moves.CHECKPOINT)
        assert "UPDATE sequence_runs" in (raised.value.statement or "")
        connection.rollback()


def test_one_whose_commit_is_refused_tells_no_statement(postgresql_stepping: Stepping) -> None:
    mine = claim(postgresql_stepping)
    with postgresql_stepping.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TEMPORARY TABLE later (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.exec_driver_sql("INSERT INTO later VALUES (1), (1)")
        with pytest.raises(sa.exc.IntegrityError) as raised:
            moves.make_and_commit(connection, mine, moves.CHECKPOINT)
        assert raised.value.statement is None
        connection.rollback()
    assert postgresql_stepping.row(mine.id).version == mine.version
