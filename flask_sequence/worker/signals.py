"""What a Celery worker does at its signals: it imports sequences, and has a keeper."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import time
import typing as t
import uuid

from billiard.process import current_process
from celery import signals
from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.solo import TaskPool as Solo
from celery.utils.imports import cwd_in_path

from ..broker.embedded import check_folders
from ..broker.garbage import leave_garbage_alone
from ..broker.line import Line, keep_alive
from ..broker.problems import setup_problem
from ..broker.publisher import PUBLISH_SECONDS
from ..definition.registry import get_sequence, sequence_names
from ..engine.connections import KeptConnection, bind_of
from ..engine.contexts import own_context
from ..engine.in_hand import InHand
from ..errors import SetupError
from ..rows import reads
from ..rows.dialects import blocks_greenlets, is_memory, most_connections
from ..rows.driver_errors import NO_ANSWER
from ..rows.liveness import watch_connections
from ..rows.own_connections import OwnConnections, TimeIsUp
from ..runtime import TASK, Runtime, WorkerProcess
from .duties import RENEW_LEASE
from .introduction import first_line, say
from .keeper import Keeper
from .task import known_runtimes, runtime_for, runtime_of_worker

if t.TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy import Engine

logger: logging.Logger = logging.getLogger("flask_sequence")


def import_sequences(runtime: Runtime) -> None:
    """Import the modules of ``SEQUENCE_IMPORTS``.

    :raises SetupError: If one cannot be found.
    """
    for module in runtime.settings.imports:
        try:
            # Some modules read current_app when imported. `celery -A` finds what is in the current
            # folder, but does not leave that in the path.
            with runtime.app.app_context(), cwd_in_path():
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise SetupError(
                f"SEQUENCE_IMPORTS names {module!r}, but there is no such module here: write it as"
                " you would import it, for example 'shop.sequences'."
            ) from error


def run_worker(celery: Celery, options: t.Iterable[str]) -> int:
    """Run Celery's worker until it ends, and give its exit code, which ``worker_main`` drops.

    :param celery: The Celery application.
    :param options: The worker's options.
    """
    workers: list[t.Any] = []

    def note(sender: t.Any, **_: t.Any) -> None:
        workers.append(sender)

    signals.worker_init.connect(note)
    main: t.Any = celery.worker_main  # typed as if it never came back
    main(["worker", *options])
    return sum(worker.exitcode or 0 for worker in workers)


def limited_steps(runtime: Runtime, queues: t.Collection[str]) -> list[str]:
    """Name the steps with time limits that may come to a worker.

    :param runtime: The application's runtime.
    :param queues: The queues that the worker consumes.
    """
    return [
        f"{definition.name}.{step.name}"
        for definition in map(get_sequence, sequence_names())
        for step in definition.steps
        if (step.options.time_limit or step.options.soft_time_limit)
        and runtime.queue_of(step.options, None) in queues
    ]


LOOK_SECONDS = 5.0
"""How long a statement may take with which a worker looks at its tables before it starts."""

_GREEN_POOLS = {"celery.concurrency.gevent", "celery.concurrency.eventlet"}

_keepers: dict[Runtime, Keeper] = {}
_main_pids: set[int] = set()


@signals.celeryd_init.connect(weak=False)
def _on_start(instance: t.Any, **_: t.Any) -> None:
    # Celery itself fails at such an address before the next signal.
    if runtime_for(instance.app) is not None and (problem := setup_problem(instance.app)):
        raise SystemExit(f"Error: {problem}")


@signals.worker_init.connect(weak=False)
def _on_init(sender: t.Any, **_: t.Any) -> None:
    try:
        runtime = runtime_of_worker(sender.app)
        if runtime is None:
            return
        _prepare(runtime, sender)
    except SetupError as error:
        # Any other exception Celery would log, and start without.
        raise SystemExit(f"Error: {error}") from error
    except Exception as error:
        logger.exception("The worker cannot start")
        raise SystemExit(1) from error
    keep_alive(sender.app)
    leave_garbage_alone(sender.app)
    # RabbitMQ closes the channel where nudges wait for half an hour behind long steps, and Celery
    # would end the worker.
    sender.app.conf.broker_channel_error_retry = True


def _time_limit(worker: t.Any) -> float | None:
    """Return the shortest time limit that a worker sets for our task, in seconds."""
    task = worker.app.tasks[TASK]
    limits = (worker.time_limit, worker.soft_time_limit, task.time_limit, task.soft_time_limit)
    return min(filter(None, limits), default=None)


def _prepare(runtime: Runtime, worker: t.Any) -> None:
    """Get ready, and find out what can never work.

    :raises SetupError: What that is.
    """
    import_sequences(runtime)
    with own_context(runtime):
        engine = bind_of(runtime).engine
        if is_memory(engine):
            raise SetupError(
                "The database is SQLite in memory, which a worker cannot share with the"
                " application: use a file, for example sqlite:///app.db."
            )
        for each in runtime.db.engines.values():
            watch_connections(each)
        _check_tables(engine)
    _check_broker(runtime, worker.app.amqp.queues.consume_from.values())
    runtime.worker = WorkerProcess(
        id=uuid.uuid4().hex, engine=engine, in_hand=InHand(), time_limit=_time_limit(worker)
    )
    _main_pids.add(os.getpid())


def _check_tables(engine: Engine) -> None:
    # Not the application's pool: that of a main process would keep the connection, unused.
    connections, until = OwnConnections(engine), time.monotonic() + 2 * LOOK_SECONDS
    driver = engine.dialect.loaded_dbapi
    unanswered = (*NO_ANSWER, driver.OperationalError, driver.InterfaceError, TimeIsUp)
    try:
        with (
            contextlib.suppress(*unanswered),
            connections.transaction(statement=LOOK_SECONDS, until=until) as connection,
        ):
            reads.living_workers(connection)
    finally:
        connections.close()


def _check_broker(runtime: Runtime, queues: t.Iterable[t.Any]) -> None:
    """Find out whether the broker can ever be used; one that is down is waited for, by Celery."""
    check_folders(runtime.celery)
    line = Line(runtime.celery, PUBLISH_SECONDS)  # no publisher: it has a thread, before a fork
    try:
        line.depth(queues)
    except Exception as error:
        if problem := setup_problem(runtime.celery, error):
            raise problem from error
    finally:
        line.close()


@signals.celeryd_after_setup.connect(weak=False)
def _on_setup(instance: t.Any, **_: t.Any) -> None:
    runtime = runtime_for(instance.app)
    if runtime is not None and runtime.worker is not None:
        say(first_line(runtime, instance.app.amqp.queues.consume_from))


@signals.worker_process_init.connect(weak=False)
def _on_process_init(**_: t.Any) -> None:
    if os.getpid() in _main_pids:
        return  # the solo pool's
    for runtime in known_runtimes():
        with runtime.app.app_context():
            for engine in runtime.db.engines.values():
                engine.dispose(close=False)  # the parent's connections stay the parent's
        if runtime.worker is not None:
            runtime.worker.in_hand.be_child(getattr(current_process(), "index", None))
            if _can_keep(runtime.worker.engine):
                runtime.worker.kept = KeptConnection(runtime.worker.engine)


def _can_keep(engine: Engine) -> bool:
    """Tell whether a process may keep a connection, and steps still find some in the pool."""
    most = most_connections(engine)
    return engine.dialect.name == "postgresql" and (most is None or most > 2)


@signals.worker_ready.connect(weak=False)
def _on_ready(sender: t.Any, **_: t.Any) -> None:
    runtime = runtime_for(sender.app)
    if runtime is None or runtime.worker is None:
        return
    keeper = _keepers[runtime] = Keeper(runtime, sender)
    _warn_of_limits(runtime, keeper, sender.pool)
    _warn_of_driver(runtime, sender.pool)
    _warn_of_connections(runtime, sender.pool, sender.controller.concurrency)
    with contextlib.suppress(Exception):
        keeper.perform(RENEW_LEASE)  # at once, so that the first claims are of a living worker
    keeper.start()


def _warn_of_limits(runtime: Runtime, keeper: Keeper, pool: t.Any) -> None:
    limited = [] if isinstance(pool, Prefork) else limited_steps(runtime, keeper.post.queues)
    if limited:
        logger.warning(
            "This worker's pool enforces no time limits, but these steps have some: %s. Use --pool"
            " prefork, or give them a queue that only a worker with that pool consumes.",
            ", ".join(limited),
        )


def _warn_of_driver(runtime: Runtime, pool: t.Any) -> None:
    assert runtime.worker is not None
    if type(pool).__module__ in _GREEN_POOLS and blocks_greenlets(runtime.worker.engine):
        logger.warning(
            "With this pool the database driver %s blocks all steps of the worker while one waits"
            " for the database, and forever if two need the same row. Use psycopg (3) or"
            " PyMySQL, or patch psycopg2 with psycogreen.",
            runtime.worker.engine.dialect.driver,
        )


def _warn_of_connections(runtime: Runtime, pool: t.Any, slots: int) -> None:
    assert runtime.worker is not None
    most = most_connections(runtime.worker.engine)
    if isinstance(pool, (Prefork, Solo)) or most is None or slots <= most:
        return
    logger.warning(
        "This worker runs %s steps at once, but SQLAlchemy's pool has only %s connections for them:"
        " the others wait, and their runs are not claimed. Set SQLALCHEMY_ENGINE_OPTIONS ="
        " {'pool_size': %s}, or start it with -c %s.",
        slots,
        most,
        slots,
        most,
    )


@signals.worker_shutting_down.connect(weak=False)
def _on_shutting_down(**_: t.Any) -> None:
    if os.getpid() in _main_pids:
        for runtime in known_runtimes():
            if runtime.worker is not None:
                runtime.worker.stop_flag[0] = 1


@signals.worker_shutdown.connect(weak=False)
def _on_shutdown(sender: t.Any, **_: t.Any) -> None:
    if (runtime := runtime_for(sender.app)) is not None:
        _stop(runtime)


def _stop(runtime: Runtime) -> None:
    keeper = _keepers.pop(runtime, None)
    if keeper is not None:
        keeper.stop()
        runtime.worker = None


@atexit.register
def _stop_all() -> None:
    # A cold shutdown sends no signal.
    if os.getpid() in _main_pids:
        for runtime in list(_keepers):
            _stop(runtime)
