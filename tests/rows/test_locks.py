"""What is locked stands in nobody's way, and nothing waits without a bound."""

from __future__ import annotations

import pytest

from flask_sequence.rows import reads, upkeep
from tests.support.stepping import Stepping, note
from tests.support.strangers import Stranger


def do(step: object) -> None:
    note("done")


class TestLockRows:
    def test_a_row_that_refers_to_a_run_hides_it_from_nobody(
        self, postgresql_stepping: Stepping
    ) -> None:
        stepping = postgresql_stepping
        stranger, run_id = Stranger(stepping), stepping.start(do)
        stepping.set(run_id, published_at=None)
        with stranger.referring(run_id), stepping.connect() as connection:
            due = reads.due(connection, queues=["celery"], quiet=0, limit=5)
            assert [row.id for row in due] == [run_id]
            assert reads.lock(connection, [run_id]) == [run_id]

    def test_what_is_locked_keeps_nobody_from_referring_to_it(
        self, postgresql_stepping: Stepping
    ) -> None:
        stepping = postgresql_stepping
        stranger, run_id = Stranger(stepping), stepping.start(do)
        with stepping.connect() as connection:
            assert reads.lock(connection, [run_id]) == [run_id]
            with stranger.referring(run_id):
                pass

    @pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
    def test_what_somebody_locks_is_left_out(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stranger = Stranger(stepping)
        first, second = stepping.start(do), stepping.start(do)
        with stranger.locking(first), stepping.connect() as connection:
            assert reads.lock(connection, [first, second]) == [second]

    @pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
    def test_a_run_that_somebody_refers_to_is_not_deleted_yet(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        stepping: Stepping = request.getfixturevalue(f"{kind}_stepping")
        stranger = Stranger(stepping)
        first, second = stepping.start(do), stepping.start(do)
        for run_id in (first, second):
            stepping.advance(run_id)
        with stranger.referring(first), stepping.connect() as connection:
            assert upkeep.delete(connection, [first, second]) == 1
        assert stepping.row(first) is not None
        with stepping.connect() as connection:
            assert upkeep.delete(connection, [first, second]) == 1
        assert stepping.row(first) is stepping.row(second) is None
