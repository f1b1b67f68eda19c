"""How many runs are inserted by one statement; a single one is inserted by its session."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from .dialects import clock
from .models import runs


def insert_many(
    connection: sa.Connection,
    rows: t.Sequence[t.Mapping[str, t.Any]],
    *,
    same: t.Mapping[str, t.Any],
    due_at: t.Any,
    is_published: bool,
) -> list[int]:
    """(nothing) -> waiting, for many runs.

    :param rows: Of each, ``uid`` and ``data``, encoded.
    :param same: The other columns that have no default; of all.
    :param due_at: When they are due; None: at once.
    :param is_published: Whether the caller publishes them.
    :return: Their ids, in the order of ``rows``.
    """
    due_at = clock() if due_at is None else due_at
    published_at = clock() if is_published else sa.null()
    if connection.dialect.name == "postgresql":
        statement = _insert_unnested({**_DEFAULTS, **same}, due_at, published_at)
        columns = {name: [str(row[name]) for row in rows] for name in ("uid", "data")}
        # As their sequence counts up in the order of the rows, so do they.
        return sorted(connection.execute(statement, columns).scalars())
    statement = sa.insert(runs).values(due_at=due_at, published_at=published_at)
    values = [{**same, **row} for row in rows]
    if connection.dialect.insert_executemany_returning:
        statement = statement.returning(runs.c.id, sort_by_parameter_order=True)
        return list(connection.execute(statement, values).scalars())
    inserted = (connection.execute(statement, row).inserted_primary_key for row in values)
    return [key[0] for key in inserted if key is not None]


_DEFAULTS: dict[str, t.Any] = {
    column.name: t.cast(t.Any, column.default).arg
    for column in runs.c
    if column.default is not None and column.default.is_scalar
}


def _insert_unnested(
    same: t.Mapping[str, t.Any], due_at: t.Any, published_at: sa.ColumnElement[t.Any]
) -> sa.Insert:
    # Two arrays: with a parameter for each value, the driver takes longer than the server.
    texts = sa.ARRAY(sa.Text)
    arrays = sa.func.unnest(sa.bindparam("uid", type_=texts), sa.bindparam("data", type_=texts))
    row = arrays.table_valued("uid", "data", with_ordinality="number").render_derived()
    values = {
        **{name: sa.cast(row.c[name], runs.c[name].type) for name in ("uid", "data")},
        "due_at": due_at,
        "published_at": sa.cast(published_at, runs.c.published_at.type),
        **{name: clock() for name in ("created_at", "updated_at")},
        **{name: sa.literal(value, runs.c[name].type) for name, value in same.items()},
    }
    chosen = sa.select(*values.values()).select_from(row).order_by(row.c.number)
    insert = sa.insert(runs).from_select(list(values), chosen, include_defaults=False)
    return insert.returning(runs.c.id)
