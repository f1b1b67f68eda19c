"""Celery's eager mode: runs are performed where they are committed."""

from __future__ import annotations

import threading
import typing as t

import pytest
from flask import g, has_request_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func, select

from flask_sequence import BaseSequence, SequenceRun, Status, Step
from tests.support.application import Effect, db

if t.TYPE_CHECKING:
    from flask import Flask

MakeApp = t.Callable[..., "Flask"]


class RefusalError(Exception):
    """What a step raises here."""


class Write(Step):
    """Writes an effect, and notes what it found around it."""

    def perform(self) -> None:
        seen = g.get("seen", 0)
        g.seen = seen + 1
        db.session.add(Effect(run_id=self.run.id, step="Write", note=f"{seen}"))


class EagerOnce(BaseSequence):
    steps = (Write,)


class EagerThrice(BaseSequence):
    steps = tuple(type(f"Write{n}", (Write,), {}) for n in (1, 2, 3))


class Silent(Step):
    def perform(self) -> None:
        self.data["done"] = True


class EagerSilent(BaseSequence):
    steps = (Silent, type("SilentToo", (Silent,), {}))


class EagerMany(BaseSequence):
    steps = tuple(type(f"Count{n}", (Write,), {}) for n in range(300))


class Patient(Step):
    default_retry_delay = 3600

    def perform(self) -> None:
        if self.attempt < 3:
            raise RefusalError("not yet")


class EagerWaits(BaseSequence):
    steps = (Patient, Write)


class Refuse(Step):
    autoretry_for = (KeyError,)

    def perform(self) -> None:
        db.session.add(Effect(run_id=self.run.id, step="Refuse"))
        raise RefusalError("no")


class EagerFails(BaseSequence):
    steps = (Write, Refuse)


class StartOthers(Step):
    def perform(self) -> None:
        EagerOnce.start()
        self.data["checkpoint"] = 1
        db.session.commit()
        EagerFails.start()
        self.data["mine"] = has_request_context()


class EagerNested(BaseSequence):
    steps = (StartOthers, Write)


@pytest.fixture
def eager(make_app: MakeApp, database_url: str) -> Flask:
    """An application in eager mode."""
    return make_app(database_url, {"task_always_eager": True})


def effects() -> int:
    return db.session.scalar(select(func.count()).select_from(Effect)) or 0


def test_a_run_is_performed_at_the_commit(eager: Flask) -> None:
    with eager.app_context():
        run = EagerThrice.start()
        db.session.flush()
        assert effects() == 0
        db.session.commit()
        assert run.status is Status.FINISHED
        assert effects() == 3
        assert [s.status for s in run.step_runs] == ["finished"] * 3


def test_after_a_rollback_nothing_is_performed(eager: Flask) -> None:
    with eager.app_context():
        EagerOnce.start()
        db.session.rollback()
        with db.session.begin_nested():
            EagerOnce.start()
        assert effects() == 0
        db.session.rollback()
        db.session.commit()
        assert effects() == 0


def test_many_steps_are_a_loop_and_no_recursion(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url, {"task_always_eager": True})
    with app.app_context():
        run = EagerMany.start()
        db.session.commit()
        assert run.status is Status.FINISHED
        assert effects() == 300


def test_each_step_has_an_app_context_of_its_own(eager: Flask) -> None:
    with eager.app_context():
        g.seen = 17
        pending = Effect(step="mine")
        EagerThrice.start()
        db.session.commit()
        db.session.add(pending)
        EagerThrice.start()
        db.session.flush()
        db.session.commit()
        assert g.seen == 17
        assert set(db.session.scalars(select(Effect.note))) == {"0", ""}


def test_times_are_ignored(eager: Flask) -> None:
    with eager.app_context():
        later, waits = EagerOnce.set(countdown=3600).start(), EagerWaits.start()
        db.session.commit()
        assert (later.status, waits.status) == (Status.FINISHED, Status.FINISHED)
        assert [s.status for s in waits.step_runs] == ["retry", "retry", "finished", "finished"]


def test_a_failure_is_on_the_run(eager: Flask) -> None:
    with eager.app_context():
        run = EagerFails.start()
        db.session.commit()
        assert run.status is Status.FAILED
        assert run.error == "RefusalError: no"
        assert effects() == 1
        run.retry()
        db.session.commit()
        assert run.status is Status.FAILED
        assert [s.status for s in run.step_runs] == ["finished", "failed", "failed"]


def test_a_failure_is_raised_where_celery_is_told_to(make_app: MakeApp, database_url: str) -> None:
    app = make_app(database_url, {"task_always_eager": True, "task_eager_propagates": True})
    with app.app_context():
        run = EagerFails.start()
        other = EagerOnce.start()
        with pytest.raises(RefusalError, match="no"):
            db.session.commit()
        # The commit went through, and the session can be used as after any other.
        assert run.status is Status.FAILED
        assert other.status is Status.FINISHED
        db.session.add(Effect(step="after"))
        db.session.commit()
        assert effects() == 3


def test_runs_may_be_started_inside_steps(eager: Flask) -> None:
    with eager.app_context():
        run = EagerNested.start()
        db.session.commit()
        assert run.status is Status.FINISHED
        runs = db.session.execute(select(SequenceRun.sequence, SequenceRun.status)).all()
        assert sorted(map(tuple, runs)) == [
            ("EagerFails", Status.FAILED),
            ("EagerNested", Status.FINISHED),
            ("EagerOnce", Status.FINISHED),
        ]
        assert effects() == 3


def test_in_a_request_its_own_session_stays_as_it_was(eager: Flask) -> None:
    seen: list[t.Any] = []

    @eager.post("/contact")
    def contact() -> str:
        mine = Effect(step="mine")
        db.session.add(mine)
        run = EagerNested.start()
        db.session.commit()
        seen.extend([mine in db.session, run in db.session, run.status, run.data["mine"]])
        db.session.add(Effect(step="never committed"))
        return "thanks"

    assert eager.test_client().post("/contact").status_code == 200
    assert seen[:3] == [True, True, Status.FINISHED]
    with eager.app_context():
        assert "never committed" not in db.session.scalars(select(Effect.step)).all()


def test_all_of_many_are_performed(make_app: MakeApp, sqlite_url: str) -> None:
    app = make_app(sqlite_url, {"task_always_eager": True})
    with app.app_context():
        EagerOnce.start_many([{}] * 120)
        db.session.commit()
        assert effects() == 120


def test_a_database_in_memory_will_do(make_app: MakeApp) -> None:
    app = make_app("sqlite://", {"task_always_eager": True})
    with app.app_context():
        db.create_all(bind_key=None)
        run = EagerNested.start()
        db.session.commit()
        assert run.status is Status.FINISHED
        assert effects() == 3


def test_no_thread_is_started(eager: Flask) -> None:
    before = threading.active_count()
    with eager.app_context():
        EagerOnce.start()
        db.session.commit()
    assert threading.active_count() == before


def test_two_threads_do_not_mix(make_app: MakeApp, postgresql_url: str) -> None:
    app = make_app(postgresql_url, {"task_always_eager": True})

    def start() -> None:
        with app.app_context():
            for _ in range(5):
                EagerThrice.start()
                db.session.commit()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with app.app_context():
        assert effects() == 45


def test_a_session_by_thread_stays_that_of_the_caller(make_app: MakeApp, sqlite_url: str) -> None:
    by_thread = SQLAlchemy(session_options={"scopefunc": threading.get_ident})
    app = make_app(sqlite_url, {"task_always_eager": True}, database=by_thread)
    with app.app_context():
        run = EagerSilent.start()
        by_thread.session.commit()
        assert run.status is Status.FINISHED  # it is read again, so it is not detached
        by_thread.session.remove()
