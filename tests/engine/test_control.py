"""``run.retry``, ``run.cancel`` and ``run.wait``, and what the command line asks."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import typing as t
from inspect import signature

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_sequence import (
    BaseSequence,
    MoveRefusedError,
    RunNotFoundError,
    SequenceRun,
    Status,
    Step,
)
from flask_sequence.engine import control, starting
from flask_sequence.rows.dialects import later
from flask_sequence.rows.models import runs
from flask_sequence.runtime import Nudge
from flask_sequence.testing import drain
from tests.support.application import Effect, db
from tests.support.starts import Fails, TwoSteps, committed, committed_runs, record_published
from tests.support.stepping import recorded

MakeApp = t.Callable[..., Flask]


def statuses(app: Flask) -> list[Status]:
    return committed(app, sa.select(SequenceRun.status).order_by(SequenceRun.id))


def committed_run(status: Status, **values: t.Any) -> SequenceRun:
    """Start a run, and put it where a test wants it."""
    run = TwoSteps.set(key="k").start()
    db.session.commit()
    put = sa.update(runs).where(runs.c.id == run.id)
    db.session.execute(put.values(status=status, **values))
    db.session.commit()
    return run


OTHER_THAN_FAILED = [status for status in Status if status is not Status.FAILED]


class TestRetry:
    def test_takes_a_failed_run_up_again(self, app: Flask, published: list[Nudge]) -> None:
        run = Fails.start()
        db.session.commit()
        assert drain(app) == 1
        db.session.rollback()
        assert statuses(app) == [Status.FAILED]
        published.clear()
        run.retry()
        assert run.status is Status.WAITING
        assert statuses(app) == [Status.FAILED]
        db.session.commit()
        assert [(nudge.run_id, nudge.version) for nudge in published] == [(run.id, run.version)]
        assert drain(app) == 1
        db.session.rollback()
        assert (run.status, run.retries) == (Status.FAILED, 0)
        assert [row.attempt for row in run.step_runs] == [1, 2]

    def test_gives_all_tries_back(self, app: Flask, published: list[Nudge]) -> None:
        run = committed_run(Status.FAILED, retries=25, crashes=5, due_at=None)
        run.retry()
        db.session.commit()
        assert (run.retries, run.crashes) == (0, 0)
        assert drain(app) == 2

    def test_is_rolled_back_with_the_callers_transaction(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        run = committed_run(Status.FAILED)
        published.clear()
        run.retry()
        db.session.rollback()
        assert run.status is Status.FAILED
        assert published == []

    @pytest.mark.parametrize("status", OTHER_THAN_FAILED)
    def test_is_refused(self, sqlite_app: Flask, status: Status) -> None:
        run = committed_run(status)
        with pytest.raises(MoveRefusedError, match=f"Run {run.id} is {status.value}.*; only"):
            run.retry()
        assert run.status is status

    def test_makes_another_try_due_now(self, app: Flask, published: list[Nudge]) -> None:
        run = committed_run(Status.WAITING, attempt=1, retries=1, due_at=later(600))
        published.clear()
        run.retry()
        db.session.commit()
        assert [(nudge.run_id, nudge.version) for nudge in published] == [(run.id, run.version)]
        assert (run.retries, run.attempt) == (1, 1)
        assert drain(app) == 2

    def test_of_many_leaves_to_the_workers_what_its_commit_does_not_publish(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        run_ids = TwoSteps.start_many([{}] * 130)
        db.session.commit()
        failed = {"status": Status.FAILED, "published_at": later(-60)}
        db.session.execute(sa.update(runs).where(runs.c.id.in_(run_ids[:65])).values(**failed))
        again = {"attempt": 1, "due_at": later(60), "published_at": later(-60)}
        db.session.execute(sa.update(runs).where(runs.c.id.in_(run_ids[65:])).values(**again))
        db.session.commit()
        published.clear()
        for run_id in run_ids:
            control.find_run(run_id).retry()
        db.session.commit()
        assert [nudge.run_id for nudge in published] == run_ids
        unsent = sa.select(runs.c.id).where(runs.c.published_at.is_(None))
        assert sorted(db.session.scalars(unsent)) == run_ids[100:]

    def test_shows_in_the_session_at_once(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.FAILED)
        shown = [run.status]
        run.retry()
        shown.append(run.status)
        run.cancel()
        shown.append(run.status)
        assert shown == [Status.FAILED, Status.WAITING, Status.CANCELLED]

    def test_does_not_make_the_first_try_due(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.WAITING, due_at=later(600))
        with pytest.raises(MoveRefusedError, match="waiting for its first try"):
            run.retry()

    def test_twice_is_refused(self, app: Flask, published: list[Nudge]) -> None:
        run = committed_run(Status.FAILED)
        run.retry()
        with pytest.raises(MoveRefusedError, match="is waiting"):
            run.retry()
        db.session.commit()
        assert statuses(app) == [Status.WAITING]

    def test_by_several_at_once_is_one_retry(self, make_app: MakeApp, database_url: str) -> None:
        app = make_app(database_url, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 10})
        with app.app_context():
            published = record_published(app)
            run_id = committed_run(Status.FAILED).id
            published.clear()
        together = threading.Barrier(6)

        def retry(number: int) -> bool:
            with app.app_context():
                run = control.find_run(run_id)
                together.wait(30)
                try:
                    run.retry()
                except MoveRefusedError:
                    db.session.rollback()
                    return False
                db.session.commit()
                return True

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(retry, range(6))) == [False] * 5 + [True]
        assert len(published) == 1
        assert committed(app, sa.select(SequenceRun.version)) == [1]

    def test_of_a_run_whose_step_is_not_known_is_left_to_the_sweep(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        run = committed_run(Status.FAILED)
        db.session.execute(sa.update(runs).values(step="gone"))
        db.session.commit()
        published.clear()
        run.retry()
        db.session.commit()
        assert published == []
        assert statuses(app) == [Status.WAITING]

    @pytest.mark.parametrize("verb", ["retry", "cancel"])
    def test_of_a_detached_run(self, sqlite_app: Flask, verb: str) -> None:
        run = committed_run(Status.FAILED)
        assert run.status is Status.FAILED
        db.session.expunge(run)
        getattr(run, verb)()
        db.session.commit()
        assert statuses(sqlite_app) != [Status.FAILED]

    @pytest.mark.parametrize("verb", ["retry", "cancel"])
    def test_of_a_run_that_is_gone(self, sqlite_app: Flask, verb: str) -> None:
        run = committed_run(Status.FAILED)
        db.session.execute(sa.delete(runs))
        db.session.commit()
        with pytest.raises(RunNotFoundError, match="There is no run"):
            getattr(run, verb)()

    @pytest.mark.parametrize("verb", ["retry", "cancel"])
    def test_of_a_run_that_was_rolled_back(self, sqlite_app: Flask, verb: str) -> None:
        run = TwoSteps.start()
        db.session.rollback()
        with pytest.raises(RunNotFoundError, match="commit"):
            getattr(run, verb)()


class TestCancel:
    @pytest.mark.parametrize(
        "status", [status for status in Status if status is not Status.FINISHED]
    )
    def test_from(self, app: Flask, published: list[Nudge], status: Status) -> None:
        run = committed_run(status)
        run.cancel()
        assert run.status is Status.CANCELLED
        run.cancel()
        db.session.commit()
        run.cancel()
        db.session.commit()
        assert statuses(app) == [Status.CANCELLED]
        assert drain(app, ignore_due=True) == 0
        assert (run.finished_at is None) is (status is Status.CANCELLED)
        assert TwoSteps.set(key="k").start().id != run.id or status is Status.CANCELLED

    def test_takes_it_from_the_process_that_performs_it(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        held = {"worker_id": "somebody", "pid": 7, "step_started_at": sa.func.current_timestamp()}
        run = committed_run(Status.RUNNING, **held)
        run.cancel()
        db.session.commit()
        row = db.session.execute(sa.select(*(runs.c[name] for name in held))).one()
        assert row == (None, None, None)

    def test_of_a_finished_run_is_refused(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.FINISHED)
        with pytest.raises(MoveRefusedError, match="is finished already"):
            run.cancel()

    def test_is_rolled_back_with_the_callers_transaction(
        self, app: Flask, published: list[Nudge]
    ) -> None:
        run = committed_run(Status.WAITING)
        run.cancel()
        db.session.rollback()
        assert run.status is Status.WAITING
        assert drain(app) == 2

    def test_before_the_commit_of_the_start(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        run.cancel()
        db.session.commit()
        assert statuses(app) == [Status.CANCELLED]
        assert drain(app) == 0

    def test_by_a_step_of_its_own_is_refused(self, app: Flask, published: list[Nudge]) -> None:
        class CancelsItself(Step):
            autoretry_for = ()

            def perform(self) -> None:
                assert self.run.id is not None
                control.find_run(self.run.id).cancel()

        class Suicidal(BaseSequence):
            steps = (CancelsItself,)

        run = Suicidal.start()
        db.session.commit()
        drain(app)
        db.session.rollback()
        assert run.status is Status.FAILED
        assert "self.finish() or self.fail()" in str(run.error)

    def test_by_a_step_of_another_run(self, app: Flask, published: list[Nudge]) -> None:
        other = TwoSteps.set(countdown=60).start()
        db.session.flush()
        other_id = other.id

        class CancelsAnother(Step):
            def perform(self) -> None:
                control.find_run(other_id).cancel()

        class Kills(BaseSequence):
            steps = (CancelsAnother,)

        run = Kills.start()
        db.session.commit()
        assert drain(app) == 1
        db.session.rollback()
        assert (run.status, other.status) == (Status.FINISHED, Status.CANCELLED)

    def test_while_it_runs_ends_it(self, app: Flask, published: list[Nudge]) -> None:
        def cancel() -> None:
            with app.app_context():
                control.find_run(run_id).cancel()
                db.session.commit()

        class IsCancelled(Step):
            def perform(self) -> None:
                db.session.add(Effect(note="never"))
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    pool.submit(cancel).result()

        class Cancelled(BaseSequence):
            steps = (IsCancelled,)

        run = Cancelled.start()
        db.session.commit()
        run_id = run.id
        db.session.rollback()
        drain(app)
        assert statuses(app) == [Status.CANCELLED]
        assert committed(app, sa.select(Effect.note)) == []


class TestWait:
    @pytest.mark.parametrize("status", [Status.FINISHED, Status.FAILED, Status.CANCELLED])
    def test_for_one_that_has_ended(self, sqlite_app: Flask, status: Status) -> None:
        assert committed_run(status).wait(0) is status

    @pytest.mark.parametrize(
        "status", [Status.WAITING, Status.RUNNING, Status.PAUSED, Status.BLOCKED]
    )
    def test_for_one_that_goes_on(self, sqlite_app: Flask, status: Status) -> None:
        run = committed_run(status)
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"is {status.value} at First after 0.2 s"):
            run.wait(0.2)
        assert 0.2 <= time.monotonic() - started < 2

    def test_until_it_ends(self, app: Flask, published: list[Nudge]) -> None:
        run = TwoSteps.start()
        db.session.commit()
        assert run.status is Status.WAITING  # begins a transaction, and with it a snapshot
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            drained = pool.submit(drain, app)
            assert run.wait(20) is Status.FINISHED
            assert drained.result() == 2

    def test_while_the_caller_writes(self, app: Flask, published: list[Nudge]) -> None:
        run = committed_run(Status.FINISHED)
        db.session.add(Effect(note="mine"))
        db.session.flush()
        assert run.wait(1) is Status.FINISHED
        db.session.rollback()
        assert committed(app, sa.select(Effect.note)) == []

    def test_for_a_row_that_is_gone(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.WAITING)
        db.session.execute(sa.delete(runs))
        db.session.commit()
        assert run.wait(1) is Status.FINISHED

    @pytest.mark.parametrize("how", ["pending", "flushed", "many", "rolled back", "expunged"])
    def test_for_one_that_was_never_committed(self, sqlite_app: Flask, how: str) -> None:
        run = TwoSteps.start()
        if how == "flushed":
            db.session.flush()
        elif how == "many":
            run = t.cast(SequenceRun, db.session.get(SequenceRun, TwoSteps.start_many([{}])[0]))
        elif how == "rolled back":
            db.session.flush()
            db.session.rollback()
        elif how == "expunged":
            db.session.expunge(run)
        with pytest.raises(RunNotFoundError, match="commit"):
            run.wait(1)

    def test_in_another_thread(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.FINISHED)
        db.session.refresh(run)
        db.session.expunge(run)

        def wait() -> Status:
            with sqlite_app.app_context():
                return run.wait(1)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(wait).result() is Status.FINISHED

    def test_in_memory_keeps_what_the_caller_wrote(self, make_app: MakeApp) -> None:
        with make_app("sqlite://").app_context():
            db.create_all(bind_key=None)
            run = committed_run(Status.FINISHED)
            db.session.add(Effect(note="mine"))
            db.session.flush()
            assert run.wait(1) is Status.FINISHED
            assert db.session.scalars(sa.select(Effect.note)).all() == ["mine"]
            db.session.rollback()
            assert db.session.scalars(sa.select(Effect.note)).all() == []


class TestLists:
    def test_find(self, sqlite_app: Flask) -> None:
        run = committed_run(Status.WAITING)
        assert control.find_run(run.id) is run
        with pytest.raises(RunNotFoundError, match="There is no run 999"):
            control.find_run(999)

    def test_list(self, sqlite_app: Flask) -> None:
        waiting = TwoSteps.start(secret="s")
        fails = Fails.start()
        db.session.commit()
        drain(sqlite_app)
        later = TwoSteps.start()
        db.session.commit()

        def ids(**conditions: t.Any) -> list[int]:
            return [row.id for row in control.list_runs(**conditions)]

        assert ids() == [later.id, fails.id, waiting.id] == committed_runs(sqlite_app)[::-1]
        assert ids(limit=2) == [later.id, fails.id]
        assert signature(control.list_runs).parameters["limit"].default == 50
        assert ids(status=Status.FAILED) == [fails.id]
        assert ids(sequence="TwoSteps") == [later.id, waiting.id]
        assert ids(sequence="TwoSteps", status=Status.FAILED) == []
        assert "secret" not in str(control.list_runs())


def test_much_data_is_inserted_by_several_statements(
    make_app: MakeApp, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "BATCH_CHARACTERS", 250)
    app = make_app(postgresql_url)
    with app.app_context(), recorded(app) as statements:
        run_ids = TwoSteps.start_many([{"text": "x" * 100} for _ in range(5)])
        db.session.commit()
    inserts = [text for text in statements if text.startswith("INSERT INTO sequence_runs")]
    assert (len(run_ids), len(inserts)) == (5, 3)
