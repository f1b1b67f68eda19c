"""What a request, a shell or a page may do to a run: start it, retry it, cancel it, wait for it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
import types
import typing as t
import uuid

from ..definition.data import ReadOnlyData, decode_text, encode
from ..definition.options import check_option
from ..definition.registry import SequenceDefinition, StepOptions, find_sequence
from ..errors import BusyError, InvalidOptionError, KeyBusyError, MoveRefusedError, RunNotFoundError
from ..rows import moves, reads
from ..rows.claims import Row
from ..rows.dialects import later
from ..rows.inserts import insert_many
from ..rows.models import SequenceRun
from ..runtime import Nudge, Runtime, current_runtime
from ..status import Progress, Status, progress_of
from .commits import run_in_hand
from .connections import connection_of
from .consumers import lost, no_consumer
from .contexts import expire, identity_of
from .transaction import (
    find_active_afresh,
    insert_unless_taken,
    is_uncommitted,
    publish_after_commit,
)
from .waiting import LOCK_SECONDS, LockWaits, brief_read, busy

logger: logging.Logger = logging.getLogger("flask_sequence")

KEY_TRIES = 5
MAX_KEY = 255
MOST_NUDGES = 100
"""How many nudges one commit publishes at most; the sweep sends the rest."""
BATCH_CHARACTERS = 1_000_000
"""How much data one statement of ``start_many`` holds, unless that of one run is longer."""
LONGEST_POLL = 0.25
"""The most seconds between two looks of ``run.wait``."""


MOST_NAMED = 10
"""How many steps an error names."""
LAST_YEAR = 9998
"""The last year that a database and Python know in every time zone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What ``set()`` chose for one run.

    :param key: The user's name for it.
    :param countdown: Seconds until it is due.
    :param eta: When it is due; an aware time.
    :param queue: The queue of the steps that name none.
    :param priority: The priority of the steps that name none.
    :raises InvalidOptionError: If a value cannot be used.
    """

    key: str | None = None
    countdown: float | None = None
    eta: datetime.datetime | None = None
    queue: str | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if self.key is not None:
            _check_key(self.key)
        if self.countdown is not None and self.eta is not None:
            raise InvalidOptionError("set() takes countdown or eta, not both.")
        if self.countdown is not None and not _is_duration(self.countdown):
            raise InvalidOptionError(
                f"set(countdown={self.countdown!r}): give seconds, from 0 to less than 1e9."
            )
        if self.eta is not None and not _is_aware(self.eta):
            raise InvalidOptionError(
                f"set(eta={self.eta!r}): give an aware datetime, such as"
                " datetime.now(timezone.utc) + timedelta(hours=1)."
            )
        if self.eta is not None and not 1970 <= self.eta.year <= LAST_YEAR:
            raise InvalidOptionError(
                f"set(eta={self.eta!r}): give a time between the years 1970 and {LAST_YEAR}."
            )
        for name in ("queue", "priority"):
            check_option("set()", name, getattr(self, name))

    @property
    def kept(self) -> dict[str, t.Any] | None:
        """What the row keeps for the steps to come."""
        chosen = {"queue": self.queue, "priority": self.priority}
        return {name: value for name, value in chosen.items() if value is not None} or None

    @property
    def delay(self) -> float | None:
        """Seconds until it is due; None: at once."""
        if self.eta is not None:
            now = datetime.datetime.now(datetime.UTC)
            return (self.eta - now).total_seconds()
        return self.countdown

    @property
    def due_at(self) -> t.Any:
        """When it is due, for the database; None: at once."""
        if self.eta is not None:
            return self.eta
        return None if self.countdown is None else later(self.countdown)


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise InvalidOptionError(f"set(key={key!r:.60}): give a text of 1 to {MAX_KEY} characters.")
    # Databases disagree on spaces at the end, and some store no control characters.
    if key != key.strip() or not key.isprintable():
        raise InvalidOptionError(
            f"set(key={key!r:.60}): leave out control characters, and spaces at either end."
        )


def _is_aware(value: object) -> bool:
    return isinstance(value, datetime.datetime) and value.utcoffset() is not None


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def start(
    definition: SequenceDefinition, data: t.Mapping[str, t.Any], options: StartOptions
) -> SequenceRun:
    """(nothing) -> waiting, as part of the caller's transaction.

    :param definition: The sequence.
    :param data: What the steps will share.
    :param options: What ``set()`` chose.
    :return: The run; with a key, perhaps the one that is active already.
    :raises SetupError: If there is no app context, or the extension is not initialised.
    :raises DataError: If the data cannot be stored.
    :raises KeyBusyError: If another transaction with the same key does not end.
    """
    runtime = current_runtime()
    first = definition.first
    text = encode(data, max_bytes=runtime.settings.max_data_bytes, place=definition.name)
    run = SequenceRun(
        **_new_row(runtime, definition, options),
        uid=uuid.uuid4(),
        data=ReadOnlyData(decode_text(text)),
        key=options.key,
        active_key=options.key,
    )
    if options.due_at is not None:
        run.due_at = options.due_at
    run._started = (runtime, first.options, options.delay)
    if options.key is None:
        runtime.db.session.add(run)
        return run
    return _start_with_key(runtime, run)


def _new_row(
    runtime: Runtime, definition: SequenceDefinition, options: StartOptions
) -> dict[str, t.Any]:
    first = definition.first
    return {
        "sequence": definition.name,
        "step": first.name,
        "status": Status.WAITING,
        "version": 0,
        "options": options.kept,
        "queue": runtime.queue_of(first.options, options.kept),
    }


def _start_with_key(runtime: Runtime, run: SequenceRun) -> SequenceRun:
    assert run.key is not None
    session = runtime.db.session()
    error = KeyBusyError(run.sequence, run.key)
    waits = LockWaits(session, error, LOCK_SECONDS)
    for _ in range(KEY_TRIES):
        found = insert_unless_taken(waits, session, run)
        if found is None:
            with contextlib.suppress(BusyError), brief_read(runtime, waits.left) as connection:
                found = find_active_afresh(connection, session, run.sequence, run.key)
        if found is not None:
            return found
    raise error


def start_many(
    definition: SequenceDefinition,
    many: t.Iterable[t.Mapping[str, t.Any]],
    options: StartOptions,
) -> list[int]:
    """(nothing) -> waiting, for many runs at once, as part of the caller's transaction.

    :param definition: The sequence.
    :param many: The data of each run.
    :param options: What ``set()`` chose, for all of them; no key.
    :return: Their ids, in the same order.
    :raises DataError: If the data of one cannot be stored; then none is started.
    :raises BusyError: If another transaction keeps the table from being written.
    """
    runtime = current_runtime()
    if options.key is not None:
        raise InvalidOptionError("start_many() takes no key: it names one run. Use start().")
    if isinstance(many, (t.Mapping, str)):
        raise InvalidOptionError(
            f"start_many() takes a list with a dict for each run; for one run write"
            f" {definition.name}.start(**data)."
        )
    limit, place = runtime.settings.max_data_bytes, definition.name
    texts = [
        encode(data, max_bytes=limit, place=place, root=f"many[{number}]")
        for number, data in enumerate(many)
    ]
    rows = [{"uid": uuid.uuid4(), "data": text} for text in texts]
    if not rows:
        return []
    session = runtime.db.session()
    waits = LockWaits(session, busy("The table of runs"), LOCK_SECONDS)
    same = _new_row(runtime, definition, options)

    def insert(batch: list[dict[str, t.Any]]) -> list[int]:
        return insert_many(waits.connection, batch, same=same, due_at=options.due_at)

    run_ids = waits.act(lambda: [run_id for batch in _batches(rows) for run_id in insert(batch)])
    delay = max(options.delay or 0.0, 0.0)
    most = None if runtime.is_eager else MOST_NUDGES
    for run_id, row in zip(run_ids[:most], rows, strict=False):
        started = types.SimpleNamespace(**same, id=run_id, uid=row["uid"])
        nudge = runtime.nudge(started, definition.first.options, countdown=delay)
        publish_after_commit(session, nudge, publish=runtime.rides(delay))
    return run_ids


def _batches(rows: t.Iterable[dict[str, t.Any]]) -> t.Iterator[list[dict[str, t.Any]]]:
    # MariaDB takes a statement of 16 MiB at most.
    batch: list[dict[str, t.Any]] = []
    size = 0
    for row in rows:
        if batch and size + len(row["data"]) > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row["data"])
    if batch:
        yield batch


def retry(run: SequenceRun) -> None:
    """(failed, or waiting for another try) -> waiting, due now; see :meth:`SequenceRun.retry`."""
    runtime, session = _current_session()
    waits = LockWaits(session, busy(f"Run {id_of(run)}"), LOCK_SECONDS)

    def move() -> tuple[Row | None, bool]:
        row = reads.look(waits.connection, id_of(run))
        if row is None or _no_retry(row) is not None:
            return row, False
        waits.tighten()
        act = moves.revive if row.status is Status.FAILED else moves.hasten
        return row, act(waits.connection, row.id, row.version)

    row, moved = waits.act(move)
    if row is None:
        raise RunNotFoundError(id_of(run))
    if problem := _no_retry(row):
        raise MoveRefusedError(row.id, problem)
    if not moved:
        raise MoveRefusedError(row.id, "was moved by somebody else just now; look at it again.")
    expire(run)
    options = options_of(row.sequence, row.step)
    if options is not None:
        publish_after_commit(session, runtime.nudge(row, options, version=row.version + 1))


def _no_retry(row: Row) -> str | None:
    if row.status is Status.FAILED:
        return None
    only = "only a run that has failed, or waits for another try, can be retried"
    if row.status is not Status.WAITING:
        return f"is {row.status}; {only}."
    if row.due_at is not None and row.due_at <= row.now:
        return f"is waiting at {row.step}, and due already; {only}."
    return None if row.attempt else f"is waiting for its first try at {row.step}; {only}."


def cancel(run: SequenceRun) -> None:
    """(any that is not final) -> cancelled; see :meth:`SequenceRun.cancel`."""
    _, session = _current_session()
    run_id, in_hand = id_of(run), run_in_hand()
    if in_hand is not None and run_id == in_hand:
        raise MoveRefusedError(
            run_id, "cannot be cancelled by its own step: call self.finish() or self.fail()."
        )
    waits = LockWaits(session, busy(f"Run {run_id}"), LOCK_SECONDS)
    if not waits.act(lambda: moves.cancel(waits.connection, run_id)):
        row = waits.act(lambda: reads.look(waits.connection, run_id))
        if row is None:
            raise RunNotFoundError(run_id)
        if row.status is Status.FINISHED:
            raise MoveRefusedError(run_id, "is finished already; nothing is left to cancel.")
    expire(run)


def _current_session() -> tuple[Runtime, t.Any]:
    runtime = current_runtime()
    session = runtime.db.session()
    session.flush()
    return runtime, session


def id_of(run: SequenceRun) -> int:
    """Give the id of a run, also where its attributes are expired and its session is gone."""
    return t.cast(int, identity_of(run))


def options_of(sequence: str, step: str) -> StepOptions | None:
    """Give the options of a step, if this process knows it."""
    definition = find_sequence(sequence)
    found = definition.get(step) if definition else None
    return found.options if found else None


def unknown_step(runtime: Runtime, sequence: str, step: str) -> str:
    """Say of a step that is not known here how it can be known.

    :param runtime: The application's runtime.
    :param sequence: The name of its sequence.
    :param step: Its name.
    """
    definition = find_sequence(sequence)
    if definition is None:
        named = ", ".join(runtime.settings.imports) or "nothing"
        return (
            f"The step {step!r} of the sequence {sequence!r} is not known to the workers of its"
            " queue: name the module that defines it in SEQUENCE_IMPORTS, which names"
            f" {named}, and restart them."
        )
    names = definition.step_names[:MOST_NAMED]
    more = ", ..." * (len(definition.step_names) > MOST_NAMED)
    return (
        f"The sequence {sequence!r} has no step {step!r}; its steps are {', '.join(names)}{more}."
        f" Was it renamed? Give it that name by name = {step!r} in its class, or by"
        f" @step(name={step!r}); or cancel the run."
    )


def wait(run: SequenceRun, timeout: float) -> Status:
    """Wait until a run is finished, failed or cancelled; see :meth:`SequenceRun.wait`."""
    runtime = current_runtime()
    run_id = id_of(run)
    if is_uncommitted(runtime.db.session(), run):
        raise RunNotFoundError(run_id)
    until, pause = time.monotonic() + timeout, 0.01
    where, trouble = "not seen", t.cast("BusyError | None", None)
    while True:
        left = max(0.0, until - time.monotonic())
        try:
            with brief_read(runtime, left) as connection:
                row = reads.look(connection, run_id)
        except BusyError as error:
            trouble = error
        else:
            if row is None:
                return Status.FINISHED
            if row.status in (Status.FINISHED, Status.FAILED, Status.CANCELLED):
                return t.cast(Status, row.status)
            where, trouble = f"{row.status} at {row.step}", None
        left = until - time.monotonic()
        if left <= 0:
            why = f": {trouble}" if trouble else f".{_why_waiting(runtime, run_id)}"
            raise TimeoutError(f"Run {run_id} is {where} after {timeout} s{why}") from trouble
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_POLL)


def _why_waiting(runtime: Runtime, run_id: int) -> str:
    if runtime.is_eager:
        return ""
    with contextlib.suppress(BusyError), brief_read(runtime, LONGEST_POLL) as connection:
        row = reads.look(connection, run_id)
        if row is not None and row.status is Status.WAITING:
            workers, default = reads.living_workers(connection), runtime.default_queue
            told = no_consumer(workers, row.queue, default)
            return f" {told}" if told else ""
    return ""


def progress(run: SequenceRun) -> Progress:
    """Tell how far a run has come; see :attr:`SequenceRun.progress`."""
    definition, run_id = find_sequence(run.sequence), identity_of(run)
    done: list[str] = []
    if run_id is not None:
        done = reads.finished_steps(connection_of(current_runtime().db.session()), run_id)
    names = definition.step_names if definition else ()
    return progress_of(names, run.step, run.status, done)


def find_run(run_id: int) -> SequenceRun:
    """Load a run into ``db.session``.

    :raises RunNotFoundError: If there is none with that id.
    """
    run = current_runtime().db.session.get(SequenceRun, run_id)
    if run is None:
        raise RunNotFoundError(run_id)
    return run


def list_runs(
    *, status: Status | None = None, sequence: str | None = None, limit: int = 50
) -> list[Row]:
    """Give the newest runs, without their data, and ``now``, the database's clock.

    :param status: Only these.
    :param sequence: Only those of this sequence.
    :param limit: The most to give.
    """
    connection = connection_of(current_runtime().db.session())
    return reads.list_runs(connection, status=status, sequence=sequence, limit=limit)


def missing_workers(rows: t.Iterable[t.Any]) -> list[str]:
    """Say which workers are missing for runs that wait, and how to start them.

    :param rows: The runs, with their ``status`` and ``queue``.
    """
    runtime = current_runtime()
    queues = sorted({row.queue for row in rows if row.status is Status.WAITING})
    if not queues or runtime.is_eager:
        return []
    workers = reads.living_workers(connection_of(runtime.db.session()))
    told = (no_consumer(workers, queue, runtime.default_queue) for queue in queues)
    return [text for text in told if text is not None]


def holder_of(run: SequenceRun) -> tuple[str, str | None]:
    """Say which process performs a run, and whether that seems to be gone, and what follows then.

    :param run: A run that is performed.
    """
    runtime = current_runtime()
    held = reads.holder(connection_of(runtime.db.session()), run.worker_id)
    label = f"{held.host if held else '?'}:{run.pid}"
    return label, lost(held, run.pid, sweep=runtime.settings.sweep_seconds)


def retries_of(sequence: str, step: str) -> int | None:
    """Give how many retries a step has; None: there is no limit, or it is not known here."""
    options = options_of(sequence, step)
    default = current_runtime().settings.max_retries
    return options.retry.limit(default) if options else None


def place_of(sequence: str, step: str) -> tuple[int, int] | None:
    """Give the place of a step, from 1, and how many there are; None: it is not known here."""
    definition = find_sequence(sequence)
    names = definition.step_names if definition else ()
    return (names.index(step) + 1, len(names)) if step in names else None


__all__ = [
    "Nudge",
    "StartOptions",
    "cancel",
    "find_run",
    "holder_of",
    "list_runs",
    "missing_workers",
    "place_of",
    "progress",
    "retries_of",
    "retry",
    "start",
    "wait",
]
