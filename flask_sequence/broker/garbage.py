"""Messages in Redis that are none: kombu would end Celery's worker over them."""

from __future__ import annotations

import logging
import typing as t

from ..failures import one_line
from .transport import check_message

if t.TYPE_CHECKING:
    from celery import Celery

logger: logging.Logger = logging.getLogger("flask_sequence")

_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def leave_garbage_alone(celery: Celery) -> None:
    """Let a worker go on after a message of Redis that cannot be read, which is lost.

    What the application's own handlers of messages raise is raised as ever.

    :param celery: The Celery application.
    """
    transport: t.Any = type(celery.connection_for_read().transport)
    plain: t.Any = getattr(transport, "Channel", None)
    if not hasattr(plain, "_brpop_read") or hasattr(plain, "_is_read"):
        return

    class Message(plain.Message):  # type: ignore[misc]
        def __init__(self, payload: t.Any, channel: t.Any = None, **kwargs: t.Any) -> None:
            check_message(payload, channel)
            super().__init__(payload, channel=channel, **kwargs)
            channel._is_read = True

    class Channel(plain):  # type: ignore[misc]
        _is_read = False

        def _brpop_read(self, **options: t.Any) -> t.Any:
            self._is_read = False
            try:
                return super()._brpop_read(**options)
            except _UNREADABLE as error:
                if self._is_read:
                    raise
                logger.warning("Left alone: a message that cannot be read: %s", one_line(error))
                return True

    Channel.Message = Message
    transport.Channel = Channel
