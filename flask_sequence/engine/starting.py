"""How a run is started: as part of the caller's transaction, with the options that it chose."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import types
import typing as t
import uuid

from ..definition.data import ReadOnlyData, decode_text, encode
from ..definition.options import check_option
from ..definition.registry import SequenceDefinition
from ..errors import BusyError, InvalidOptionError, KeyBusyError
from ..rows.dialects import later
from ..rows.inserts import insert_many
from ..rows.models import SequenceRun
from ..runtime import Runtime, current_runtime
from ..status import Status
from .transaction import (
    find_active_afresh,
    insert_unless_taken,
    publish_after_commit,
    room_to_publish,
)
from .waiting import LockWaits, brief_read, busy

KEY_TRIES = 5
MAX_KEY = 255
BATCH_CHARACTERS = 1_000_000
"""How much data one statement of ``start_many`` holds, unless that of one run is longer."""
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
        raise InvalidOptionError(
            f"set(key={key!r:.60}): give a string of 1 to {MAX_KEY} characters."
        )
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
    run._note_start(runtime, first.options, options.delay)
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
    waits = LockWaits(session, error)
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
    rows = _new_rows(runtime, definition, many)
    if not rows:
        return []
    session = runtime.db.session()
    waits = LockWaits(session, busy("The table of runs"))
    same = _new_row(runtime, definition, options)

    def insert() -> tuple[list[int], int]:
        pending = sum(isinstance(row, SequenceRun) for row in session.new)
        room = max(room_to_publish(session) - pending, 0)
        run_ids: list[int] = []
        for part, is_published in ((rows[:room], True), (rows[room:], False)):
            for batch in _batches(part):
                run_ids += insert_many(
                    waits.connection,
                    batch,
                    same=same,
                    due_at=options.due_at,
                    is_published=is_published,
                )
        return run_ids, room

    run_ids, room = waits.act(insert)
    delay = max(options.delay or 0.0, 0.0)
    most = None if runtime.is_eager else room + 1  # one more, to know that there are more
    for run_id, row in zip(run_ids[:most], rows, strict=False):
        started = types.SimpleNamespace(**same, id=run_id, uid=row["uid"])
        nudge = runtime.nudge(started, definition.first.options, countdown=delay)
        publish_after_commit(session, nudge, publish=runtime.rides(delay))
    return run_ids


def _new_rows(
    runtime: Runtime, definition: SequenceDefinition, many: t.Iterable[t.Mapping[str, t.Any]]
) -> list[dict[str, t.Any]]:
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
    return [{"uid": uuid.uuid4(), "data": text} for text in texts]


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
