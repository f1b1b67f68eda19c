"""How the moves of a held run are said in SQL: each form is made once, and compiled once."""

from __future__ import annotations

import functools
import typing as t

import sqlalchemy as sa

from .claims import Claim
from .database import clock, later
from .models import runs, step_runs
from .status import MOVES, Status, StepStatus


class In(t.NamedTuple):
    """A time as the value of a column: the database's clock at the statement, and some seconds."""

    seconds: float


NOW = In(0.0)

Form = tuple[tuple[str, bool], ...]
"""The columns that a move changes, and which of them get a time by the database's clock."""


class History(t.NamedTuple):
    """What a row of the history tells, besides the claim."""

    status: StepStatus
    label: str
    error: str | None = None
    traceback: str | None = None


def move_held(
    connection: sa.Connection,
    claim: Claim,
    target: Status,
    values: t.Mapping[str, t.Any],
    history: History | None = None,
) -> bool:
    """Move a run on by its claim, and write the history of the attempt that ends with it.

    On PostgreSQL both are one statement.

    :param connection: Where to.
    :param claim: The claim, of the current version.
    :param target: The status that follows.
    :param values: What else changes, by column.
    :param history: What the history is told; None: the attempt goes on, or does not count.
    :return: Whether the version was still the run's.
    """
    assert target in MOVES[Status.RUNNING]
    form = tuple((name, isinstance(value, In)) for name, value in values.items())
    change = {
        "run": claim.id,
        "held": claim.version,
        "raised": claim.version + 1,
        "target": target,
        **{f"to_{name}": _sent(value) for name, value in values.items()},
    }
    if history is None:
        return connection.execute(_update(form), change).rowcount == 1
    told = {
        "told_step": claim.step,
        "told_attempt": claim.attempt,
        "told_started_at": claim.step_started_at,
        **{f"told_{name}": value for name, value in history._asdict().items()},
    }
    if connection.dialect.name == "postgresql":
        return connection.execute(_update_and_tell(form), change | told).rowcount == 1
    if connection.execute(_update(form), change).rowcount != 1:
        return False
    connection.execute(_tell(), {"run": claim.id, **told})
    return True


def _sent(value: t.Any) -> t.Any:
    return round(value.seconds * 1_000_000) if isinstance(value, In) else value


@functools.cache
def _update(form: Form) -> sa.Update:
    changed = {
        name: later(sa.bindparam(f"to_{name}", type_=sa.BigInteger))
        if by_clock
        else sa.bindparam(f"to_{name}", type_=runs.c[name].type)
        for name, by_clock in form
    }
    return (
        sa.update(runs)
        .where(
            runs.c.id == sa.bindparam("run"),
            runs.c.version == sa.bindparam("held"),
            runs.c.status == Status.RUNNING,
        )
        .values(
            {
                "status": sa.bindparam("target", type_=runs.c.status.type),
                "version": sa.bindparam("raised"),
                "updated_at": clock(),
                **changed,
            }
        )
    )


def _told() -> dict[str, sa.ColumnElement[t.Any]]:
    names = ("step", "attempt", "started_at", "status", "label", "error", "traceback")
    columns = {name: {"label": "worker"}.get(name, name) for name in names}
    told: dict[str, sa.ColumnElement[t.Any]] = {
        column: sa.bindparam(f"told_{name}", type_=step_runs.c[column].type)
        for name, column in columns.items()
    }
    return {**told, "finished_at": clock()}


@functools.cache
def _tell() -> sa.Insert:
    return sa.insert(step_runs).values(run_id=sa.bindparam("run"), **_told())


@functools.cache
def _update_and_tell(form: Form) -> sa.Insert:
    moved = _update(form).returning(runs.c.id).cte("moved")
    told = _told()
    return (
        sa.insert(step_runs)
        .from_select(
            ["run_id", *told], sa.select(moved.c.id, *told.values()), include_defaults=False
        )
        .add_cte(moved)
        .execution_options(preserve_rowcount=True)
    )
