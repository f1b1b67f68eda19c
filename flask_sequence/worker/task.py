"""The one Celery task, and the way of its messages."""

from __future__ import annotations

import collections
import dataclasses
import gc
import logging
import threading
import typing as t
import weakref

from celery import Celery, Task, shared_task
from celery.exceptions import WorkerShutdown, WorkerTerminate
from flask import Flask

from ..broker.embedded import foreign_celeries, is_made, make_celery
from ..broker.publisher import publisher_of
from ..engine import runner
from ..engine.contexts import own_context, without_session
from ..engine.retention import delete_if_ended
from ..engine.transaction import MOST_NUDGES
from ..errors import SetupError
from ..failures import sanitise
from ..rows.models import FORMAT
from ..runtime import TASK, Nudge, Runtime

if t.TYPE_CHECKING:
    from sqlalchemy import URL

logger: logging.Logger = logging.getLogger("flask_sequence")

MOST = 2**63 - 1
"""No id and no version reaches it; a database's integers end here."""

_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
_making = threading.RLock()


def known_runtimes() -> list[Runtime]:
    """Give the runtimes of all applications in this process."""
    return list(_runtimes)


def register(runtime: Runtime) -> None:
    """Let the task find an application by its Celery application.

    :param runtime: The application's runtime.
    """
    _runtimes.add(runtime)


def check_celery(celery: object) -> None:
    """Refuse what was given as the Celery application and is none.

    :param celery: What was given; None: nothing.
    :raises SetupError: It is something else.
    """
    if celery is not None and not isinstance(celery, Celery):
        raise SetupError(
            f"Sequence(celery=...) takes a Celery application, but was given a"
            f" {type(celery).__name__}: pass yours; or leave it out, and name the broker by"
            ' app.config["CELERY"] = {"broker_url": "redis://..."}.'
        )


def find_celery(app: Flask) -> Celery:
    """Give the Celery application of a Flask application, and make one where there is none.

    :param app: The Flask application.
    :raises SetupError: If something else stands in its place, or the process has a Celery
        application that belongs to no Sequence extension.
    """
    with _making:
        celery = app.extensions.get("celery")
        if celery is None:
            _refuse_foreign()
            celery = make_celery(app)
    if not isinstance(celery, Celery):
        raise SetupError(
            f'app.extensions["celery"] is not a Celery application but a {type(celery).__name__}:'
            " pass yours to the extension, as Sequence(celery=celery_app)."
        )
    return celery


def _refuse_foreign() -> None:
    known = [runtime.known_celery for runtime in known_runtimes()]
    for celery in foreign_celeries():
        if not any(celery is each for each in known):
            raise SetupError(_not_given(celery))


def _not_given(celery: Celery) -> str:
    return (
        f"This process has the Celery application {celery.main!r}, which was not given to"
        " flask-sequence, so requests and workers would not use the same one. Pass it to the"
        ' extension, as Sequence(app, celery=celery), or put it into app.extensions["celery"]'
        " where the Flask application is created. If it only sends tasks to another service, create"
        " it as Celery(..., set_as_current=False)."
    )


def runtime_for(celery: Celery) -> Runtime | None:
    """Find the application that a Celery application belongs to.

    If there are more, it is the one that was chosen, or the newest.

    :param celery: The Celery application.
    """
    found = _runtimes_of(celery)
    return max(found, key=lambda runtime: (runtime.is_chosen, runtime.number), default=None)


def _runtimes_of(celery: Celery) -> list[Runtime]:
    return [runtime for runtime in known_runtimes() if runtime.known_celery is celery]


def runtime_of_worker(celery: Celery) -> Runtime | None:
    """Give the application that a worker performs for; None: none in this process is meant.

    :param celery: The worker's Celery application.
    :raises SetupError: If it was not given to an application that was given none, or was given to
        several with different databases and none of them was chosen.
    """
    runtime = runtime_for(celery)
    if runtime is not None and not runtime.is_chosen:
        _refuse_several(celery)
    if runtime is None:
        for other in known_runtimes():
            if other.known_celery is None or is_made(other.known_celery):
                raise SetupError(_not_given(celery))
    return runtime


def _refuse_several(celery: Celery) -> None:
    if len(_databases(celery)) < 2:
        return
    gc.collect()  # an application that nobody holds any more is none
    databases = _databases(celery)
    if len(databases) > 1:
        shown = " and ".join(sorted(database.render_as_string() for database in databases))
        raise SetupError(
            f"The Celery application {celery.main!r} belongs to several Flask applications, with"
            f" the databases {shown}, and a worker runs the sequences of one. Give each"
            " Flask application a Celery application of its own, or start the worker by"
            " flask --app APPLICATION sequence worker."
        )


def _databases(celery: Celery) -> set[URL]:
    found = set()
    for runtime in _runtimes_of(celery):
        with own_context(runtime):
            found.add(runtime.db.engines[runtime.settings.bind_key].url)
    return found


# Performing


@shared_task(
    name=TASK,
    base=Task,  # not the application's: its __call__ would push an app context around ours
    bind=True,
    typing=False,
    ignore_result=True,
    acks_late=False,
    reject_on_worker_lost=False,
    max_retries=None,
    Request="flask_sequence.worker.repeats:_NudgeRequest",
)
def _advance(task: t.Any, /, *args: t.Any, **message: t.Any) -> None:
    """Perform what a nudge points at; ``flask_sequence.advance``."""
    runtime = runtime_for(task.app)
    if runtime is None:
        logger.error(
            "A nudge came to the Celery application %r, which no Sequence extension knows: create"
            " the Flask application in the module that the worker is started with, and pass this"
            " Celery application to the extension, as Sequence(app, celery=celery).",
            task.app.main,
        )
        return
    nudge = _read(message)
    if args or nudge is None:
        shown = sanitise(repr({"args": args, **message})[:200])
        logger.warning("Left alone: a message that is not a nudge of this version: %s", shown)
        return
    try:
        perform(runtime, *nudge, message=_message(task.request, message.get("mark")))
    except Exception as error:
        runner.tell_trouble(runtime, *nudge, error)
        raise


def _message(request: t.Any, mark: object) -> runner.Message | None:
    if request.is_eager:
        return None
    hard, soft = request.timelimit or (None, None)
    return runner.Message(hard, soft, request.shadow or "", request.retries or 0, mark)


def _read(message: dict[str, t.Any]) -> tuple[int, int] | None:
    form, run_id, version = (message.get(name) for name in ("format", "id", "version"))
    numbers = all(type(n) is int and 0 <= n < MOST for n in (form, run_id, version))
    if not numbers or form != FORMAT:
        return None
    return t.cast("tuple[int, int]", (run_id, version))


def perform(
    runtime: Runtime,
    run_id: int,
    version: int,
    *,
    ignore_due: bool = False,
    message: runner.Message | None = None,
) -> runner.Outcome:
    """Run the runner for a nudge, and publish what follows.

    :param runtime: The application's runtime.
    :param run_id: The run.
    :param version: The version that the nudge names.
    :param ignore_due: Whether to perform it before its time.
    :param message: What came with the nudge; None: it did not travel.
    """
    outcome = runner.advance(
        runtime,
        run_id,
        version,
        ignore_due=ignore_due,
        message=message,
        is_shutdown=_is_shutdown,
    )
    delete_if_ended(runtime, run_id, outcome.status)
    if outcome.nudge is not None:
        publish(runtime, [outcome.nudge])
    return outcome


def _is_shutdown(error: BaseException) -> bool:
    return isinstance(error, (WorkerShutdown, WorkerTerminate))


# Publishing


def publish(runtime: Runtime, nudges: t.Sequence[Nudge]) -> None:
    """Send nudges within the time that a commit may take; whatever is not sent the sweep brings.

    :param runtime: The application's runtime.
    :param nudges: What to send; about 100 are, and of each queue one of them tells that there are
        more. In eager mode all are performed at once.
    """
    if not nudges:
        return
    if runtime.is_eager:
        _perform_eagerly(runtime, nudges)
    elif runtime.publishes:
        publisher_of(runtime).publish(_chosen(nudges))


def _chosen(nudges: t.Sequence[Nudge]) -> list[Nudge]:
    """Choose which nudges of a commit are sent, and which of them tell that there are more.

    Each queue with a rest has one that does, and that is handed out at once.
    """
    chosen, rest = list(nudges[:MOST_NUDGES]), nudges[MOST_NUDGES:]
    last = {nudge.queue: place for place, nudge in enumerate(chosen) if not nudge.countdown}
    told: set[str] = set()
    for nudge in rest:
        if nudge.countdown or nudge.queue in told:
            continue
        told.add(nudge.queue)
        place = last.get(nudge.queue)
        if place is None:
            chosen.append(dataclasses.replace(nudge, more=True))
        else:
            chosen[place] = dataclasses.replace(chosen[place], more=True)
    return chosen


_eager = threading.local()
_standing_in = threading.Lock()


def _perform_eagerly(runtime: Runtime, nudges: t.Sequence[Nudge]) -> None:
    # In a loop, not by recursion: a run of many steps publishes from inside its own task.
    waiting: collections.deque[tuple[Runtime, Nudge]] | None = getattr(_eager, "waiting", None)
    added = [(runtime, nudge) for nudge in nudges]
    if waiting is not None:
        waiting.extend(added)
        return
    _eager.waiting = waiting = collections.deque(added)
    errors = []
    try:
        with without_session(runtime):
            while waiting:
                its_runtime, nudge = waiting.popleft()
                with _standing_in:
                    runner.stand_in(its_runtime)
                outcome = perform(its_runtime, nudge.run_id, nudge.version, ignore_due=True)
                errors += [outcome.error] if outcome.error else []
    finally:
        del _eager.waiting
    if errors and runtime.celery.conf.task_eager_propagates:
        raise errors[0]
