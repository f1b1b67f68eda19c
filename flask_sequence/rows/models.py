"""The tables: runs, their attempts, and the workers that are alive."""

from __future__ import annotations

import datetime
import typing as t
import uuid
import weakref

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, mapped_column, relationship
from sqlalchemy.schema import conv

from ..definition.habits import AT_RUN, set_traps, without_traps
from ..definition.registry import StepOptions
from ..errors import ConfigError, SetupError
from ..runtime import Nudge, Runtime, current_runtime
from ..status import Progress, Status, StepStatus
from .columns import data_type, id_type, name_type, text_type, time_type, uid_type, word_type
from .dialects import clock

if t.TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

FORMAT = 1
"""The form of a row and of a message; a worker leaves alone what is newer than it knows."""

EMPTIED = 0
"""The form of a run whose data were emptied since a foreign key still needs its row."""


class Base(DeclarativeBase):
    """The base of our models only; the application's base may have a constructor of its own."""


class SequenceRun(Base):
    """One execution of a sequence. Read it, join it, point foreign keys at it; never write it.

    .. versionadded:: 0.1
    """

    __tablename__ = "sequence_runs"

    id: Mapped[int] = mapped_column(id_type(), primary_key=True, autoincrement=True)
    """Known after the flush, as for any row."""
    uid: Mapped[uuid.UUID] = mapped_column(uid_type())
    """Never used again for another run; idempotency keys are made from it."""
    sequence: Mapped[str] = mapped_column(name_type())
    """The name of the sequence."""
    step: Mapped[str] = mapped_column(name_type())
    """The name of the step that it is at; for a finished run, of the last one."""
    status: Mapped[Status] = mapped_column(word_type(Status), default=Status.WAITING)
    """The status of the run."""
    data: Mapped[t.Mapping[str, t.Any]] = mapped_column(data_type())
    """The data that the steps share, as of the last commit; a dict, read-only at its top level."""
    format: Mapped[int] = mapped_column(sa.SMALLINT(), default=FORMAT)
    key: Mapped[str | None] = mapped_column(name_type())
    """Your name for the run, from ``set(key=...)``."""
    active_key: Mapped[str | None] = mapped_column(name_type())
    options: Mapped[t.Mapping[str, t.Any] | None] = mapped_column(data_type())
    queue: Mapped[str] = mapped_column(name_type())
    """The queue of the step that it is at."""
    attempt: Mapped[int] = mapped_column(sa.INTEGER(), default=0)
    """How many attempts at the current step were started."""
    retries: Mapped[int] = mapped_column(sa.INTEGER(), default=0)
    """How many times the current step failed and was retried."""
    crashes: Mapped[int] = mapped_column(sa.INTEGER(), default=0)
    """How many times a process died in it since it last made progress."""
    waits: Mapped[int] = mapped_column(sa.INTEGER(), default=0)
    """How many times it had to wait for the database since it last made progress."""
    version: Mapped[int] = mapped_column(sa.BIGINT(), default=0)
    worker_id: Mapped[str | None] = mapped_column(name_type(32))
    pid: Mapped[int | None] = mapped_column(sa.INTEGER())
    due_at: Mapped[datetime.datetime | None] = mapped_column(time_type(), default=clock())
    """When it may run at the earliest; None if it is not waiting for a time."""
    published_at: Mapped[datetime.datetime | None] = mapped_column(time_type(), default=clock())
    error: Mapped[str | None] = mapped_column(text_type())
    """One line: what went wrong last, or why it is blocked."""
    created_at: Mapped[datetime.datetime] = mapped_column(time_type(), default=clock())
    """When the run was started by ``start()``, in UTC."""
    started_at: Mapped[datetime.datetime | None] = mapped_column(time_type())
    """When a process first claimed the run, in UTC."""
    step_started_at: Mapped[datetime.datetime | None] = mapped_column(time_type())
    """When the attempt that is running was started, in UTC."""
    updated_at: Mapped[datetime.datetime] = mapped_column(time_type(), default=clock())
    """When the row was last changed, in UTC."""
    finished_at: Mapped[datetime.datetime | None] = mapped_column(time_type())
    """When the run was finished or cancelled, in UTC."""

    step_runs: Mapped[list[StepRun]] = relationship(
        viewonly=True, order_by="StepRun.id", back_populates="run"
    )
    """The attempts at its steps, oldest first."""

    __table_args__: t.Any = (
        sa.PrimaryKeyConstraint("id", name="pk_sequence_runs"),
        # An index, and partial: else PostgreSQL takes the end of a run for a change of its key,
        # and lets it wait for whoever refers to the run.
        sa.Index(
            "uq_sequence_runs_key",
            "sequence",
            "active_key",
            unique=True,
            postgresql_where=sa.text("active_key IS NOT NULL"),
            sqlite_where=sa.text("active_key IS NOT NULL"),
        ),
        sa.Index(
            "ix_sequence_runs_due",
            "status",
            "queue",
            "due_at",
            postgresql_where=sa.text("status = 'waiting'"),
            sqlite_where=sa.text("status = 'waiting'"),
        ),
        sa.Index(
            "ix_sequence_runs_running",
            "status",
            "worker_id",
            postgresql_where=sa.text("status = 'running'"),
            sqlite_where=sa.text("status = 'running'"),
        ),
        sa.Index("ix_sequence_runs_status", "status", "id"),
        sa.Index("ix_sequence_runs_sequence", "status", "sequence", "id"),
        sa.Index(
            "ix_sequence_runs_finished",
            "format",
            "finished_at",
            postgresql_where=sa.text("finished_at IS NOT NULL"),
            sqlite_where=sa.text("finished_at IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    def _note_start(self, runtime: Runtime, options: StepOptions, delay: float | None) -> None:
        _started[self] = (runtime, options, delay)

    @property
    def _is_started(self) -> bool:
        return self in _started

    def _start_nudge(self) -> tuple[Runtime, Nudge, bool]:
        runtime, options, delay = _started[self]
        nudge = runtime.nudge(self, options, countdown=max(delay or 0.0, 0.0))
        return runtime, nudge, runtime.rides(nudge.countdown)

    def retry(self) -> None:
        """Resume a failed run at its failed step, as part of the caller's transaction.

        A run that is waiting for its next retry becomes due at once.

        :raises MoveRefusedError: If the run is neither failed nor waiting for a retry.
        :raises RunNotFoundError: If its row no longer exists.

        .. versionadded:: 0.1
        """
        current_runtime().verbs.retry(self)

    def cancel(self) -> None:
        """Cancel a run that has not ended, as part of the caller's transaction.

        Once that is committed, no further step commits. Cancelling twice does nothing.

        :raises MoveRefusedError: If the run has finished.
        :raises RunNotFoundError: If its row no longer exists.

        .. versionadded:: 0.1
        """
        current_runtime().verbs.cancel(self)

    def wait(self, timeout: float) -> Status:
        """Wait, on a separate connection, until the run is finished, failed or cancelled.

        A run that was committed and whose row no longer exists counts as finished.

        :param timeout: The maximum number of seconds to wait.
        :return: The status of the run then.
        :raises TimeoutError: If the run is still under way after ``timeout`` seconds.
        :raises RunNotFoundError: If the run was never committed.

        .. versionadded:: 0.1
        """
        return current_runtime().verbs.wait(self, timeout)

    @property
    def progress(self) -> Progress:
        """How far the run is: how many of its steps are done, of how many, and the state of each.

        It stays correct when steps are renamed, moved, added or removed after the run started. Each
        access reads the history with one query.

        :return: ``position``, ``total`` and ``steps``, which have a ``name`` and a ``state``.

        .. versionadded:: 0.1
        """
        return current_runtime().verbs.progress(self)

    def __repr__(self) -> str:
        loaded = self.__dict__  # what is expired is not loaded for this: the session may be gone
        identity = sa.inspect(self).identity or (None,)
        words = [identity[0], loaded.get("sequence"), loaded.get("status")]
        if identity[0] is not None and "status" not in loaded:
            words[1:] = ["(expired by a commit: run.status loads it again)"]
        return f"<{' '.join(['SequenceRun', *(str(word) for word in words if word is not None)])}>"

    if not t.TYPE_CHECKING:  # pragma: no branch

        def __dir__(self) -> t.Iterable[str]:
            return without_traps(self, super().__dir__())


set_traps(SequenceRun, AT_RUN)


_started: weakref.WeakKeyDictionary[SequenceRun, tuple[Runtime, StepOptions, float | None]] = (
    weakref.WeakKeyDictionary()
)
"""The runtime, the first step's options and the delay of each run that was started here.

They are not on the run, which can be pickled and copied.
"""


class StepRun(Base):
    """One attempt at one step of one run, written when the attempt ends.

    .. versionadded:: 0.1
    """

    __tablename__ = "sequence_step_runs"

    id: Mapped[int] = mapped_column(id_type(), primary_key=True, autoincrement=True)
    run_id: Mapped[int] = mapped_column(
        id_type(),
        sa.ForeignKey("sequence_runs.id", name="fk_sequence_step_runs_run_id", ondelete="CASCADE"),
    )
    step: Mapped[str] = mapped_column(name_type())
    """The name of the step."""
    attempt: Mapped[int] = mapped_column(sa.INTEGER())
    """1 for the first attempt."""
    status: Mapped[StepStatus] = mapped_column(word_type(StepStatus))
    """How it ended."""
    worker: Mapped[str | None] = mapped_column(name_type())
    """The host and the process that ran it."""
    started_at: Mapped[datetime.datetime | None] = mapped_column(time_type())
    """When the attempt was started, in UTC."""
    finished_at: Mapped[datetime.datetime] = mapped_column(time_type(), default=clock())
    """When the attempt ended, in UTC."""
    error: Mapped[str | None] = mapped_column(text_type())
    """One line, or None."""
    traceback: Mapped[str | None] = mapped_column(text_type())
    """The Python traceback, or None."""

    run: Mapped[SequenceRun] = relationship(viewonly=True, back_populates="step_runs")
    """The run that it belongs to."""

    __table_args__: t.Any = (
        sa.PrimaryKeyConstraint("id", name="pk_sequence_step_runs"),
        # A constraint, not an index: MySQL refuses to drop an index that a foreign key uses, and
        # a downgrade drops indexes before their table.
        sa.UniqueConstraint("run_id", "id", name="uq_sequence_step_runs_run"),
        {"sqlite_autoincrement": True},
    )


class Worker(Base):
    """One Celery worker, and until when it counts as alive."""

    __tablename__ = "sequence_workers"

    id: Mapped[str] = mapped_column(name_type(32), primary_key=True)
    host: Mapped[str] = mapped_column(name_type())
    pid: Mapped[int] = mapped_column(sa.INTEGER())
    started_at: Mapped[datetime.datetime] = mapped_column(time_type(), default=clock())
    """When the worker was started, in UTC."""
    seen_until: Mapped[datetime.datetime] = mapped_column(time_type())
    queues: Mapped[str | None] = mapped_column(text_type())
    """The names of the queues that it consumes, as a JSON list; None if that is not known."""
    place: Mapped[str | None] = mapped_column(name_type())
    """The machine and namespace in which its process ids hold; None if that is not known."""

    __table_args__: t.Any = (sa.PrimaryKeyConstraint("id", name="pk_sequence_workers"),)


MODELS: tuple[type[Base], ...] = (SequenceRun, StepRun, Worker)

runs: sa.Table = t.cast(sa.Table, SequenceRun.__table__)
step_runs: sa.Table = t.cast(sa.Table, StepRun.__table__)
workers: sa.Table = t.cast(sa.Table, Worker.__table__)


def _fix_names(table: sa.Table) -> None:
    # A migration would else apply the application's naming convention to them.
    named: list[t.Any] = [*table.constraints, *table.indexes]
    for item in named:
        item.name = conv(item.name)


for _table in (runs, step_runs, workers):
    _fix_names(_table)


def join_metadata(db: SQLAlchemy, bind_key: str | None) -> None:
    """Make the tables known to an application's metadata, and the models to its relationships.

    The same Table objects stand in both: of a copy, foreign keys and relationships to our models
    would know nothing.

    :param db: The application's Flask-SQLAlchemy.
    :param bind_key: The bind that holds the tables.
    :raises ConfigError: If there is no such bind.
    :raises SetupError: If another application of this process has chosen another bind, or a
        table of the application has the name of one of ours.
    """
    _choose_bind(db, bind_key)
    metadata = db.metadatas[bind_key]
    for table in Base.metadata.sorted_tables:
        known = metadata.tables.get(table.key)
        if known is None:
            metadata._add_table(table.name, table.schema, table)
            _resolve_foreign_keys(metadata, table)
        elif known is not table:
            raise SetupError(
                f"The application has a table {table.name} that does not belong to flask-sequence,"
                " which needs this name. Call db.reflect() after sequence.init_app(app); or, if it"
                " is a table of yours, give it another name."
            )
    _joined.add(metadata)
    _registries.add(t.cast(t.Any, db.Model).registry)


_joined: weakref.WeakSet[sa.MetaData] = weakref.WeakSet()
_registries: weakref.WeakSet[t.Any] = weakref.WeakSet()
_LENT = {model.__name__: model for model in (SequenceRun, StepRun)}


@sa.event.listens_for(Mapper, "before_configured")
def _lend_names() -> None:
    """Let relationships find our models by name.

    Only while they look: a model of the application may have the same name, and come later.
    """
    for registry in _registries:
        for name, model in _LENT.items():
            registry._class_registry.setdefault(name, model)


@sa.event.listens_for(Mapper, "after_configured")
def _take_names_back() -> None:
    for registry in _registries:
        for name, model in _LENT.items():
            if registry._class_registry.get(name) is model:
                del registry._class_registry[name]


@sa.event.listens_for(sa.Table, "after_parent_attach")
def _resolve_in_schema(table: sa.Table, metadata: sa.MetaData) -> None:
    # SQLAlchemy looks in the schema of the metadata, and would do so forever.
    if metadata.schema is not None and metadata in _joined:
        for ours in Base.metadata.sorted_tables:
            _resolve_foreign_keys(metadata, ours)


def _choose_bind(db: SQLAlchemy, bind_key: str | None) -> None:
    if bind_key not in db.metadatas:
        raise ConfigError(
            "SEQUENCE_BIND_KEY", f"is {bind_key!r}, which is not a key of SQLALCHEMY_BINDS."
        )
    chosen = Base.metadata.info.setdefault("flask_sequence_bind_key", bind_key)
    if chosen != bind_key:
        raise SetupError(
            f"SEQUENCE_BIND_KEY is {bind_key!r}, but {chosen!r} in another application of this"
            " process: use the same key in all applications that share a process."
        )
    if bind_key is not None:
        Base.metadata.info["bind_key"] = bind_key


def _resolve_foreign_keys(metadata: sa.MetaData, table: sa.Table) -> None:
    # Of models that were defined before, and name our tables by a string.
    names = {table.key, table.key if metadata.schema is None else f"{metadata.schema}.{table.key}"}
    for column in table.c:
        for name in names:
            for key in list(metadata._fk_memos.get((name, column.key), ())):
                key._set_target_column(column)
