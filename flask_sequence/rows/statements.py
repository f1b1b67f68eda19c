"""How the moves of a held run are said in SQL: each form is made once, and compiled once."""

from __future__ import annotations

import functools
import typing as t

import sqlalchemy as sa

from ..status import Status, StepStatus
from .claims import Claim, Held
from .dialects import by_primary_key, clock, later, unindexed
from .locks import bounded_update
from .models import runs, step_runs
from .prepared import NOT_HELD, Prepared, commit_along


class In(t.NamedTuple):
    """A time as the value of a column: the database's clock at the statement, and some seconds."""

    seconds: float


NOW = In(0.0)

MOVE_SECONDS = 30
"""How long a move waits for somebody who has locked the run's row; on PostgreSQL."""

_LITERALS = (None, 0, 1, NOW)
"""The values that stand in the text of a statement: as parameters they would cost work."""

Form = tuple[tuple[str, t.Any], ...]
"""The columns that a statement sets; of each the literal, else ``value`` or ``delay``."""


class History(t.NamedTuple):
    """What a row of the history tells, besides the claim."""

    status: StepStatus
    worker: str
    """The host and the process."""
    error: str | None = None
    traceback: str | None = None


class Change:
    """What a move sets, told apart into the text of its statements and what is sent with that.

    :param target: The status that follows.
    :param values: What else changes, by column.
    :param history: What the history is told; None: the attempt goes on, or does not count.
    """

    def __init__(
        self, target: Status, values: t.Mapping[str, t.Any], history: History | None
    ) -> None:
        self._form, sent = _split(values, prefix="to_")
        self._told_form: Form | None = None
        self._sent: dict[str, t.Any] = {"target": target, **sent}
        if history is not None:
            told_form, told = _split(history._asdict(), prefix="told_")
            self._told_form = _OF_THE_CLAIM + told_form
            self._sent.update(told)

    def sent(self, claim: Claim | Held, data: str | None) -> dict[str, t.Any]:
        """Return what is sent of it for a claim.

        :param claim: The claim, of the current version.
        :param data: The encoded data, where it is among what changes.
        """
        values = {
            **self._sent,
            "run": claim.id,
            "held": claim.version,
            "told_step": claim.step,
            "told_attempt": claim.attempt,
            "told_started_at": claim.step_started_at,
        }
        if data is not None:
            values["to_data"] = data
        return values

    @functools.cached_property
    def update(self) -> Prepared:
        """What changes the run."""
        return _update(self._form, bounded=False)

    @functools.cached_property
    def tell(self) -> Prepared | None:
        """What writes the history, if it is told anything."""
        return None if self._told_form is None else _tell(self._told_form)

    @functools.cached_property
    def update_and_tell(self) -> Prepared:
        """What does both, on PostgreSQL."""
        if self._told_form is None:
            return _update(self._form, bounded=True)
        return _update_and_tell(self._form, self._told_form)

    @functools.cached_property
    def update_or_fail(self) -> Prepared:
        """The same; but it fails where the claim no longer holds."""
        return _update_or_fail(self._form, self._told_form)


_OF_THE_CLAIM: Form = (("step", "value"), ("attempt", "value"), ("started_at", "value"))
"""What a row of the history has of the claim."""


UPDATE_BY_ID: sa.Update = by_primary_key(sa.update(runs))
"""An update of runs by their ids."""

status_unindexed: t.Any = unindexed(runs.c.status)
"""The status, to be compared in an update by ids."""


def move_held(
    connection: sa.Connection, claim: Claim | Held, change: Change, data: str | None = None
) -> bool:
    """Move a run on by its claim, and write the history of the attempt that ends with it.

    On PostgreSQL both are one statement.

    :param connection: Where to.
    :param claim: The claim, of the current version.
    :param change: What changes.
    :param data: The encoded data, where it is among that.
    :return: Whether the version was still the run's.
    """
    sent = change.sent(claim, data)
    if connection.dialect.name == "postgresql":
        return change.update_and_tell.send(connection, sent).rowcount == 1
    if change.update.send(connection, sent).rowcount != 1:
        return False
    if change.tell is not None:
        change.tell.send(connection, sent)
    return True


def move_held_and_commit(
    connection: sa.Connection, claim: Claim, change: Change, data: str | None = None
) -> bool:
    """Do the same as ``move_held``, and commit, in one message; only where the claim still holds.

    :return: Whether it did; else nothing is committed.
    """
    return commit_along(connection, change.update_or_fail, change.sent(claim, data))


def _split(values: t.Mapping[str, t.Any], *, prefix: str) -> tuple[Form, dict[str, t.Any]]:
    """Tell what stands in the text of a statement from what is sent with it."""
    form: list[tuple[str, t.Any]] = []
    sent: dict[str, t.Any] = {}
    for name, value in values.items():
        if value in _LITERALS:
            form.append((name, value))
        elif isinstance(value, In):
            form.append((name, "delay"))
            sent[prefix + name] = round(value.seconds * 1_000_000)
        else:
            form.append((name, "value"))
            sent[prefix + name] = value
    return tuple(form), sent


def _column(table: sa.Table, name: str, kind: t.Any, prefix: str) -> t.Any:
    if kind == "value":
        return sa.bindparam(prefix + name, type_=table.c[name].type)
    if kind == "delay":
        return later(sa.bindparam(prefix + name, type_=sa.BigInteger))
    if kind == NOW:
        return clock()
    return sa.null() if kind is None else sa.literal_column(str(kind))


def _updating(form: Form) -> sa.Update:
    return UPDATE_BY_ID.where(
        runs.c.id == sa.bindparam("run"),
        runs.c.version == sa.bindparam("held"),
        status_unindexed == sa.literal_column(f"'{Status.RUNNING}'"),
    ).values(
        {
            "status": sa.bindparam("target", type_=runs.c.status.type),
            "version": runs.c.version + sa.literal_column("1"),
            "updated_at": clock(),
            **{name: _column(runs, name, kind, "to_") for name, kind in form},
        }
    )


def _telling(form: Form) -> dict[str, t.Any]:
    told = {
        name: _column(step_runs, name, kind, "told_") for name, kind in form if kind is not None
    }
    return {**told, "finished_at": clock()}


def _updating_in_time(form: Form) -> sa.Update:
    return bounded_update(_updating(form), MOVE_SECONDS)


@functools.cache
def _update(form: Form, bounded: bool) -> Prepared:
    return Prepared(_updating_in_time(form) if bounded else _updating(form))


@functools.cache
def _tell(form: Form) -> Prepared:
    return Prepared(sa.insert(step_runs).values(run_id=sa.bindparam("run"), **_telling(form)))


@functools.cache
def _update_and_tell(form: Form, told_form: Form) -> Prepared:
    moved = _updating_in_time(form).returning(runs.c.id).cte("moved")
    return Prepared(
        _inserting(moved, told_form).add_cte(moved).execution_options(preserve_rowcount=True)
    )


@functools.cache
def _update_or_fail(form: Form, told_form: Form | None) -> Prepared:
    # Where nothing was updated it fails: what is sent behind it is not executed then.
    moved = _updating_in_time(form).returning(runs.c.id).cte("moved")
    number = f"CAST(CASE count(*) WHEN 1 THEN '1' ELSE '{NOT_HELD}' END AS integer)"
    statement: sa.Select[t.Any] = sa.select(sa.literal_column(number)).select_from(moved)
    if told_form is not None:
        statement = statement.add_cte(_inserting(moved, told_form).cte("told"))
    return Prepared(statement)


def _inserting(moved: sa.CTE, told_form: Form) -> sa.Insert:
    told = _telling(told_form)
    chosen = sa.select(moved.c.id, *told.values())
    return sa.insert(step_runs).from_select(["run_id", *told], chosen, include_defaults=False)
