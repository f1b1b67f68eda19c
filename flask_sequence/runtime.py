"""What everything below needs to know of one application; stands in for the extension."""

from __future__ import annotations

import functools
import itertools
import mmap
import multiprocessing
import os
import socket
import typing as t
import uuid
import zlib
from dataclasses import dataclass, field

from flask import current_app, has_app_context

from .config import Settings
from .definition.registry import StepOptions
from .errors import SetupError

if t.TYPE_CHECKING:
    from celery import Celery
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import Engine

    from .engine.connections import KeptConnection
    from .engine.in_hand import InHand
    from .status import Progress, Status

TASK = "flask_sequence.advance"
"""The name of the one Celery task."""


@dataclass(frozen=True, kw_only=True)
class Nudge:
    """What is published about a run: its id and its version, and how the message travels."""

    run_id: int
    version: int
    label: str
    """The sequence and the step, for logs."""
    queue: str
    priority: int | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    countdown: float = 0.0
    """Seconds until the message is to be handed out."""
    redirect: int = 0
    """The sign that it replaces one which had come by another way; 0: it does not."""
    more: bool = False
    """Whether more runs are due than nudges were sent: a worker that takes it looks for them."""
    mark: str | None = None
    """By which the run is told from one of another database with the same id, as ``mark_of`` makes
    it; None: it is not known."""


def mark_of(uid: uuid.UUID) -> str:
    """Give the mark of a run: so little of its ``uid`` that nobody can make that of it.

    :param uid: The run's.
    """
    return f"{zlib.crc32(uid.bytes):08x}"


class Verbs(t.Protocol):
    """What a row can be asked to do."""

    def retry(self, run: t.Any) -> None:
        """Take a failed run up again from its failed step."""

    def cancel(self, run: t.Any) -> None:
        """Cancel a run that has not ended."""

    def wait(self, run: t.Any, timeout: float) -> Status:
        """Wait until a run is finished, failed or cancelled."""

    def progress(self, run: t.Any) -> Progress:
        """Tell how far a run has come."""


@dataclass(kw_only=True, eq=False)
class WorkerProcess:
    """What belongs to a process of a Celery worker, and is nowhere else."""

    id: str
    """The id of the worker's row, which its processes share."""
    engine: Engine
    """The engine of the runs."""
    in_hand: InHand
    """What the processes of the worker perform."""
    time_limit: float | None = None
    """The shortest time limit that its tasks have without one of their own, in seconds."""
    stop_flag: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))
    """A byte that they share: set once the worker is asked to stop."""
    foreign_flag: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))
    """A byte that they share: set once one of them has told of a nudge that is not theirs."""
    foreign_lock: t.Any = field(default_factory=multiprocessing.Lock)
    """A lock that they share: who tells of such a nudge takes it, for good."""
    more_due: bool = False
    """In the main process: whether a nudge has said that more runs are due."""
    kept: KeptConnection | None = None
    """The connection that a process which performs one step at a time keeps through a burst."""


_numbers = itertools.count()


@dataclass(kw_only=True, eq=False)
class Runtime:
    """The settings, database and Celery application of one Flask application."""

    app: Flask
    settings: Settings
    db: SQLAlchemy
    verbs: Verbs
    find_celery: t.Callable[[Flask], Celery]
    publish: t.Callable[[Runtime, t.Sequence[Nudge]], None]
    celery_app: Celery | None = None
    """The Celery application, once it is given or found."""
    publisher: t.Any = field(default=None, repr=False)
    """What this process publishes with; made when first needed."""
    worker: WorkerProcess | None = field(default=None, repr=False)
    """What belongs to a process of a Celery worker, where this is one."""
    stand_in_id: str | None = None
    """The id under which a process that is no worker performs runs."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Counts up the runtimes of this process."""
    is_chosen: bool = False
    """Whether the worker of this process was started for this application by name."""
    host: str = field(default_factory=socket.gethostname)
    _default_queue: str | None = field(default=None, repr=False)
    _is_found: bool = field(default=False, repr=False)
    """Whether the Celery application was looked up; else it was given."""

    @property
    def celery(self) -> Celery:
        """The Celery application, looked up when it is first needed, and again once replaced."""
        if self.celery_app is None or self._is_replaced:
            replaces, celery = self.celery_app is not None, self.find_celery(self.app)
            if replaces:
                self.publisher = self._default_queue = None
                self.__dict__.pop("_has_quorum_queues", None)
            self.celery_app, self._is_found = celery, True
        return self.celery_app

    @property
    def known_celery(self) -> Celery | None:
        """The Celery application, if there is one already; none is made."""
        if self.celery_app is None or self._is_replaced:
            return self.app.extensions.get("celery")
        return self.celery_app

    @property
    def _is_replaced(self) -> bool:
        """Whether the application has by now another Celery application than the one in use."""
        if not self._is_found or self.worker is not None:  # a worker keeps the one it runs on
            return False
        return self.app.extensions.get("celery") not in (None, self.celery_app)

    @property
    def is_eager(self) -> bool:
        """Whether runs are performed where they are committed, for tests."""
        return bool(self.celery.conf.task_always_eager)

    @property
    def publishes(self) -> bool:
        """Whether commits in this process send messages."""
        chosen = self.settings.publish
        return (self.worker is not None or not self.app.testing) if chosen is None else chosen

    @property
    def worker_id(self) -> str | None:
        """The id under which this process claims runs."""
        return self.stand_in_id if self.worker is None else self.worker.id

    @property
    def is_stopping(self) -> bool:
        """Whether the worker that this process belongs to has been asked to stop."""
        return self.worker is not None and self.worker.stop_flag[0] != 0

    @property
    def time_limit(self) -> float | None:
        """Celery's own time limit for all tasks, in seconds."""
        return t.cast("float | None", self.celery.conf.task_time_limit)

    @property
    def burst_seconds(self) -> float:
        """For how long one message goes on with further steps.

        A time limit that Celery sets for all tasks is the message's: a burst uses up at most a
        hundredth of it, and the last step has the rest.
        """
        seconds = self.settings.burst_seconds
        limit = self.worker and self.worker.time_limit
        return min(seconds, limit / 100) if limit else seconds

    @property
    def label(self) -> str:
        """The host and process, for the history."""
        return f"{self.host}:{os.getpid()}"

    def queue_of(self, options: StepOptions, chosen: t.Mapping[str, t.Any] | None) -> str:
        """Give the queue of a step: its own, then the run's, then the configured one.

        :param options: The options of the step.
        :param chosen: What ``set()`` chose for the run.
        """
        default = self.default_queue  # always: a start is where a wrong Celery is refused
        return options.queue or (chosen or {}).get("queue") or default

    @property
    def default_queue(self) -> str:
        """``SEQUENCE_QUEUE``, or where Celery routes our task."""
        celery = self.celery
        if self._default_queue is None:
            self._default_queue = self.settings.queue or _routed_queue(celery)
        return self._default_queue

    def rides(self, delay: float) -> bool:
        """Tell whether a nudge may wait in the broker; for a longer delay the sweep sends it.

        There is no sweep in eager mode, which ignores delays.

        :param delay: Seconds until it is due.
        """
        if delay <= 0 or self.is_eager:
            return True
        return delay < (self.settings.sweep_seconds or 5.0) and not self._has_quorum_queues

    @functools.cached_property
    def _has_quorum_queues(self) -> bool:
        # Celery refuses delays under a second with those, and warns of longer ones.
        queues: t.Iterable[t.Any] = self.celery.amqp.queues.values()
        kinds = ((queue.queue_arguments or {}).get("x-queue-type") for queue in queues)
        return "quorum" in kinds

    def nudge(
        self,
        run: t.Any,
        options: StepOptions,
        *,
        version: int | None = None,
        step: str | None = None,
        countdown: float = 0.0,
        redirect: int = 0,
    ) -> Nudge:
        """Make the nudge for a run.

        :param run: A row of ``sequence_runs``, or anything with its attributes.
        :param options: The options of the step that it stands at.
        :param version: The version to name, where it is no longer the row's.
        :param step: The step to name in logs, where it is no longer the row's.
        :param countdown: Seconds until it is due.
        :param redirect: The sign that it replaces one which came by another way.
        """
        chosen: t.Mapping[str, t.Any] = run.options or {}
        uid: uuid.UUID | None = getattr(run, "uid", None)
        return Nudge(
            run_id=run.id,
            version=run.version if version is None else version,
            label=f"{run.sequence}.{step or run.step}",
            queue=self.queue_of(options, chosen),
            priority=options.priority if options.priority is not None else chosen.get("priority"),
            time_limit=options.time_limit,
            soft_time_limit=options.soft_time_limit,
            countdown=countdown,
            redirect=redirect,
            mark=None if uid is None else mark_of(uid),
        )


def _routed_queue(celery: Celery) -> str:
    task: t.Any = celery.tasks[TASK]
    router: t.Any = celery.amqp.router
    try:
        route = router.route({}, TASK, (), {}, task)
    except Exception as error:
        if type(error).__name__ == "QueueNotFound":  # Celery's, which is not imported here
            raise SetupError(
                f"Celery cannot route the task {TASK}: {error.args[0]}, and"
                " task_create_missing_queues is off. Add the queue to task_queues, or name another"
                " one by SEQUENCE_QUEUE."
            ) from error
        raise SetupError(
            f"A router in task_routes fails for the task {TASK}: {type(error).__name__}: {error}."
            " The task is routed without arguments: let the router return None for it, or a queue."
        ) from error
    queue = route.get("queue") or celery.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def runtime_of(app: Flask) -> Runtime:
    """Give the runtime of an application.

    :param app: The application.
    :raises SetupError: If the extension has not been initialised with it.
    """
    try:
        return t.cast(Runtime, app.extensions["sequence"])
    except KeyError:
        raise SetupError(
            f"flask-sequence is not initialised for {app.name!r}: call sequence.init_app(app) in"
            " the function that creates the application, after db.init_app(app)."
        ) from None


def current_runtime() -> Runtime:
    """Give the runtime of the application that is active here.

    :raises SetupError: If no application is active, or the extension is not initialised with it.
    """
    if not has_app_context():
        raise SetupError(
            "No Flask application is active here. Start a run in a request or a CLI command,"
            " or inside 'with app.app_context():'."
        )
    return runtime_of(current_app)
