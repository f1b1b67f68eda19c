"""Sequences made of functions, performed in place, for the tests of the runner."""

from __future__ import annotations

import contextlib
import typing as t

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.pool import NullPool

from flask_sequence import BaseSequence, Status, Step, StepStatus
from flask_sequence.engine.connections import own_transaction
from flask_sequence.engine.in_hand import InHand
from flask_sequence.engine.runner import Outcome, advance, stand_in
from flask_sequence.rows.models import runs, step_runs
from flask_sequence.runtime import Nudge, Runtime, WorkerProcess, runtime_of
from tests.support.application import Effect, db

Body = t.Callable[[t.Any], t.Any]


def note(text: str) -> None:
    """Write an effect through ``db.session``."""
    db.session.add(Effect(note=text))


def note_by_core(text: str) -> None:
    """Write an effect through ``db.session``, past the unit of work."""
    db.session.execute(sa.insert(Effect).values(note=text, step=""))


def make_step(body: Body, name: str | None = None, **options: t.Any) -> type[Step[t.Any]]:
    """Make a step whose ``perform`` is a function of the step."""
    options.setdefault("retry_jitter", False)
    members = {"perform": lambda self: body(self), "name": name or body.__name__, **options}
    return t.cast("type[Step[t.Any]]", type("Made", (Step,), members))


def make_sequence(*steps: Body | type[Step[t.Any]], name: str = "Made") -> type[BaseSequence]:
    """Make a sequence; a function is made a step first."""
    made = tuple(step if isinstance(step, type) else make_step(step) for step in steps)
    return t.cast(
        "type[BaseSequence]", type("Made", (BaseSequence,), {"steps": made, "name": name})
    )


def be_worker(app: Flask, worker_id: str = "worker") -> WorkerProcess:
    """Let this process be one of a Celery worker, for an application."""
    with app.app_context():
        worker = WorkerProcess(id=worker_id, engine=db.engine, in_hand=InHand())
    runtime_of(app).worker = worker
    return worker


class Stepping:
    """An application whose runs are performed in place, and looked at from outside."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.runtime: Runtime = runtime_of(app)
        self.published: list[Nudge] = []
        self.runtime.publish = lambda runtime, nudges: self.published.extend(nudges)
        stand_in(self.runtime)
        self.engine = sa.create_engine(
            app.config["SQLALCHEMY_DATABASE_URI"],
            poolclass=NullPool,
            isolation_level="SERIALIZABLE" if self.dialect == "sqlite" else "READ COMMITTED",
        )

    @property
    def dialect(self) -> str:
        """The kind of the database."""
        return sa.make_url(self.app.config["SQLALCHEMY_DATABASE_URI"]).get_backend_name()

    def start(self, *steps: Body | type[Step[t.Any]], **data: t.Any) -> int:
        """Define a sequence, start a run of it, and commit."""
        sequence = make_sequence(*steps)
        with self.app.app_context():
            run = sequence.set().start(**data)
            db.session.commit()
            return run.id

    def advance(self, run_id: int, **options: t.Any) -> Outcome:
        """Bring the runner a nudge that is not stale."""
        options.setdefault("ignore_due", True)
        return advance(self.runtime, run_id, self.row(run_id).version, **options)

    def run(self, *steps: Body | type[Step[t.Any]], **data: t.Any) -> t.Any:
        """Start a run, bring one nudge, and give its row."""
        run_id = self.start(*steps, **data)
        self.advance(run_id)
        return self.row(run_id)

    @contextlib.contextmanager
    def connect(self) -> t.Iterator[sa.Connection]:
        """Open a transaction on a connection of another process, as it were."""
        with self.engine.begin() as connection:
            yield connection

    @property
    def short(self) -> t.Callable[[], t.ContextManager[sa.Connection]]:
        """What opens a short transaction of the application's."""
        return lambda: own_transaction(self.runtime)

    def row(self, run_id: int) -> t.Any:
        """Read what is committed of a run."""
        with self.connect() as connection:
            return connection.execute(sa.select(runs).where(runs.c.id == run_id)).one_or_none()

    def set(self, run_id: int, **values: t.Any) -> None:
        """Change a row behind the runner's back."""
        with self.connect() as connection:
            connection.execute(sa.update(runs).where(runs.c.id == run_id).values(**values))

    def take_over(self, run_id: int) -> None:
        """Let another worker have taken a run."""
        self.set(run_id, version=runs.c.version + 2, worker_id="other", pid=1)

    def cancel(self, run_id: int) -> None:
        """Let a person have cancelled a run."""
        self.set(run_id, status=Status.CANCELLED, version=runs.c.version + 1)

    def history(self, run_id: int) -> list[tuple[str, int, StepStatus]]:
        """Give step, number and end of the attempts at a run."""
        statement = sa.select(step_runs).where(step_runs.c.run_id == run_id)
        with self.connect() as connection:
            rows = connection.execute(statement.order_by(step_runs.c.id))
            return [(row.step, row.attempt, row.status) for row in rows]

    def notes(self) -> list[str]:
        """Give the effects that are committed."""
        with self.connect() as connection:
            return list(connection.execute(sa.select(Effect.note).order_by(Effect.id)).scalars())

    def statements(self) -> contextlib.AbstractContextManager[list[str]]:
        """Record the statements that the application sends."""
        return recorded(self.app)


@contextlib.contextmanager
def recorded(app: Flask) -> t.Iterator[list[str]]:
    """Record the statements that an application sends."""
    sent: list[str] = []

    def record(connection: t.Any, cursor: t.Any, statement: str, *rest: t.Any) -> None:
        sent.append(statement)

    with app.app_context():
        engine = db.engine
    sa.event.listen(engine, "before_cursor_execute", record)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", record)
