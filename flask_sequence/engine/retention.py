"""The end of a run that is not kept."""

from __future__ import annotations

import logging
import typing as t

from ..failures import one_line
from ..rows import upkeep
from ..rows.driver_errors import is_integrity_error
from ..rows.locks import bounded_lock_wait
from ..runtime import Runtime
from ..status import Status
from .connections import own_transaction

logger: logging.Logger = logging.getLogger("flask_sequence")

DELETE_SECONDS = 1
"""How long a process waits for a lock of somebody else; then it leaves its run to the keeper."""
NEEDED = (
    "Run %s is kept, without its data, since a foreign key of another table needs its row: give"
    ' that key ondelete="SET NULL", and an index'
)
"""What is told of a run that cannot be deleted, with its id."""


def delete_if_ended(runtime: Runtime, run_id: int, status: Status | None) -> None:
    """Delete a run right after its last step, where ``SEQUENCE_RETENTION`` is 0.

    :param runtime: The application's runtime.
    :param run_id: The run.
    :param status: Where it stands now.
    """
    if status is not Status.FINISHED or runtime.settings.retention_seconds != 0:
        return
    try:
        _end(runtime, lambda connection: upkeep.delete(connection, [run_id]))
    except Exception as error:
        if is_integrity_error(error):
            _empty(runtime, run_id)
        else:
            # The run has finished: its caller must not be told that it has not.
            logger.warning("Run %s is left to the keeper to delete: %s", run_id, one_line(error))


def _empty(runtime: Runtime, run_id: int) -> None:
    try:
        _end(runtime, lambda connection: upkeep.empty(connection, run_id))
    except Exception as error:
        logger.warning("Run %s is left to the keeper to delete: %s", run_id, one_line(error))
    else:
        logger.warning(NEEDED, run_id)


def _end(runtime: Runtime, act: t.Callable[[t.Any], object]) -> None:
    with (
        own_transaction(runtime) as connection,
        bounded_lock_wait(connection, DELETE_SECONDS),
        connection.begin_nested(),
    ):
        act(connection)
