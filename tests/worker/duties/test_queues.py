"""Runs that wait where nobody takes them follow their step, or are told of."""

from __future__ import annotations

import typing as t

import pytest

from flask_sequence import Status
from flask_sequence.engine.connections import own_transaction
from flask_sequence.rows import upkeep
from flask_sequence.rows.dialects import later
from flask_sequence.worker.duties import FOLLOW_QUEUES, PUBLISH_DUE, RENEW_LEASE
from tests.support.keeping import Keeping
from tests.support.logs import level_of
from tests.support.stepping import Stepping, make_sequence, make_step, note

OVERDUE: dict[str, t.Any] = {"due_at": later(-10.5), "published_at": later(-60)}


def end(step: t.Any) -> None:
    note("end")


def add_worker(stepping: Stepping, *queues: str) -> None:
    with own_transaction(stepping.runtime) as connection:
        upkeep.renew_worker(connection, "w", host="h", pid=1, lease=30, queues=queues)


def test_a_queue_that_nobody_consumes_is_told_of_once(
    stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    step = make_step(end, "posted", queue="mail")
    run_ids = [stepping.start(step) for _ in range(2)]
    keeping = Keeping(stepping.runtime, "celery")
    keeping.do(RENEW_LEASE)
    keeping.do(FOLLOW_QUEUES)
    assert caplog.messages == []  # due just now: it may be taken at once

    for run_id in run_ids:
        stepping.set(run_id, **OVERDUE)
    for _ in range(2):
        keeping.do(FOLLOW_QUEUES)
    assert caplog.messages == [
        "2 runs are waiting for a worker. No running worker consumes the queue 'mail': start one"
        " with 'flask sequence worker -Q mail'."
    ]
    assert level_of(caplog, "are waiting for a worker") == "WARNING"
    assert stepping.row(run_ids[0]).queue == "mail"

    add_worker(stepping, "mail", "other")
    keeping.do(FOLLOW_QUEUES)
    add_worker(stepping)
    keeping.do(FOLLOW_QUEUES)
    assert len(caplog.messages) == 2  # it has come again


def test_a_worker_that_does_not_tell_its_queues_may_consume_any(
    stepping: Stepping, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = stepping.start(make_step(end, "posted", queue="mail"))
    stepping.set(run_id, **OVERDUE)
    with own_transaction(stepping.runtime) as connection:
        upkeep.renew_worker(connection, "old", host="h", pid=1, lease=30)
    Keeping(stepping.runtime, "celery").do(FOLLOW_QUEUES)
    assert caplog.messages == []


@pytest.mark.parametrize("consumed", ["celery", "other"])
def test_what_waits_follows_the_queue_of_its_step(stepping: Stepping, consumed: str) -> None:
    """Whether its own queue is consumed by this worker or by nobody."""
    run_id, fresh = (stepping.start(make_step(end, "moved", queue="celery")) for _ in range(2))
    stepping.set(run_id, **OVERDUE)
    make_sequence(make_step(end, "moved", queue="fast"))
    keeping = Keeping(stepping.runtime, consumed)
    keeping.do(RENEW_LEASE)
    keeping.do(FOLLOW_QUEUES)
    row = stepping.row(run_id)
    assert (row.queue, row.version, row.status) == ("fast", 1, Status.WAITING)
    assert stepping.row(fresh).queue == "celery"
    (nudge,) = Keeping(stepping.runtime, "fast").do(PUBLISH_DUE)
    assert (nudge.run_id, nudge.queue, nudge.version) == (run_id, "fast", 1)
    keeping.do(FOLLOW_QUEUES)
    assert stepping.row(run_id).version == 1
    assert stepping.advance(run_id).status is Status.FINISHED


def test_what_others_consume_is_left_to_them(stepping: Stepping) -> None:
    run_id = stepping.start(make_step(end, "moved", queue="mail"))
    stepping.set(run_id, **OVERDUE)
    make_sequence(make_step(end, "moved", queue="fast"))
    add_worker(stepping, "mail")
    Keeping(stepping.runtime, "celery").do(FOLLOW_QUEUES)
    assert stepping.row(run_id).queue == "mail"
