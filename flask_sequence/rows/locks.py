"""How rows are locked, and how long anything waits for those that others have locked."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa


def lock_rows(
    statement: sa.Select[t.Any], *, skip_locked: bool = False, with_keys: bool = False
) -> sa.Select[t.Any]:
    """Lock the rows that a statement reads, as an update of them does.

    On PostgreSQL this leaves their keys alone: a row that somebody else inserts, and that refers
    to one of them, neither waits for it nor hides it. MariaDB and MySQL have no such lock.

    :param statement: What is read.
    :param skip_locked: Whether to leave out what somebody else has locked, and not to wait.
    :param with_keys: Whether the rows are about to be deleted.
    """
    return statement.with_for_update(key_share=not with_keys, skip_locked=skip_locked)
