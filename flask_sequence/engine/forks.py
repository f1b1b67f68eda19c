"""A process that a step forks: it shares its parent's sockets, and must not speak on them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import typing as t

from ..errors import SetupError
from ..rows.liveness import socket_number
from .doors import doors_of

if t.TYPE_CHECKING:
    from .attempt import Attempt

logger: logging.Logger = logging.getLogger("flask_sequence")

_FORKED = 70
"""The exit code of a process that a step has forked, and that comes back from it."""

_parents: list[t.Any] = []
"""The parent's connections: what closed them here might tell the server."""


class _NotHere:
    """Stands in a forked process for a connection of its parent's step."""

    def __getattr__(self, name: str) -> t.NoReturn:
        raise SetupError(
            "This process was forked by a step, and cannot use its transaction: leave db.session"
            " alone here, and open connections of its own: call db.engine.dispose(close=False),"
            " then use db.engine."
        )


def end_if_forked(attempt: Attempt, error: BaseException | None = None) -> None:
    """End this process, if a step has forked it: it would go on as a second one of its worker.

    :param attempt: The attempt at the step.
    :param error: What was raised in this process.
    """
    if attempt.claim.is_mine:
        return
    with contextlib.suppress(Exception):
        logger.error(
            "%s has forked this process, which has returned from the step: it ends here, with exit"
            " code %s; end such a process with os._exit()",
            attempt.place,
            _FORKED,
            exc_info=error,
        )
    os._exit(_FORKED)


def _part_from_parent() -> None:
    for connection in list(doors_of):
        with contextlib.suppress(Exception):
            _part(connection.connection)


def _part(proxied: t.Any) -> None:
    driver = proxied.dbapi_connection
    _parents.append(driver)
    proxied.dbapi_connection = _NotHere()
    number = socket_number(driver)
    if number is not None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.dup2(ours.fileno(), number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_from_parent)
