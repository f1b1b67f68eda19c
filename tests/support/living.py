"""What an installation does in its life, in short: starts, steps, tries, verbs and duties."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from flask_sequence import Status
from flask_sequence.engine.connections import own_transaction
from flask_sequence.engine.control import list_runs
from flask_sequence.rows import moves
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import runs
from flask_sequence.testing import drain
from flask_sequence.worker.duties import DUTIES
from tests.support.application import db
from tests.support.keeping import Keeping
from tests.support.stepping import Stepping, make_sequence, make_step, note

if t.TYPE_CHECKING:
    from flask import Flask


def first(step: t.Any) -> None:
    note("first")
    db.session.commit()


def second(step: t.Any) -> None:
    if step.attempt == step.data["fails_at"]:
        raise ValueError("once")
    note("second")
    step.data["fails_at"] = 0


def third(step: t.Any) -> None:
    step.data["done"] = True


def live(app: Flask, change: t.Callable[[sa.Executable], object]) -> None:
    """Let an application start, try again, retry, cancel, lose a process and purge.

    :param app: The application; ``SEQUENCE_RETENTION`` is shorter than a day.
    :param change: Changes rows behind its back.
    """
    once = make_step(second, autoretry_for=(LookupError,))
    made = make_sequence(first, once, third, name="Lived")
    runtime = Stepping(app).runtime

    def read(run_id: int) -> t.Any:
        return next(row for row in list_runs() if row.id == run_id)

    with app.app_context():
        run = made.set(key="one").start(fails_at=1)
        db.session.flush()
        assert made.set(key="one").start(fails_at=0) is run
        run_id = int(run.id)
        cancelled = made.start(fails_at=0)
        db.session.commit()
        cancelled.cancel()
        db.session.commit()
        assert cancelled.wait(1) is Status.CANCELLED
        assert drain(app) == 2
        assert run.wait(1) is Status.FAILED
        run.retry()
        db.session.commit()
        assert drain(app) == 2
        assert read(run_id).status is Status.FINISHED
        (lost,) = made.start_many([{"fails_at": 0}])
        db.session.commit()
    with own_transaction(runtime) as connection:
        assert moves.claim(connection, lost, 0, worker_id="gone", pid=4711)
    with app.app_context():
        assert read(lost).status is Status.RUNNING
    day = {"finished_at": later(-86400.0)}
    change(sa.update(runs).where(runs.c.finished_at.is_not(None)).values(**day))
    keeping = Keeping(runtime)
    for duty in DUTIES:
        keeping.perform(duty)
    with app.app_context():
        assert [(row.id, row.status) for row in list_runs()] == [(lost, Status.WAITING)]
    drain(app, ignore_due=True)
    with app.app_context():
        assert read(lost).status is Status.FINISHED
