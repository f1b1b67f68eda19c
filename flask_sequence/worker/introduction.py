"""What a worker says of itself when it starts."""

from __future__ import annotations

import importlib.metadata
import logging
import typing as t

from ..broker.problems import shown_broker
from ..definition.registry import sequence_names
from ..masking import MASK, is_secret
from ..runtime import Runtime

if t.TYPE_CHECKING:
    from sqlalchemy import URL

logger: logging.Logger = logging.getLogger("flask_sequence")

MOST_NAMED = 20
"""How many sequences the line names."""


def say(text: str) -> None:
    """Log a line whatever the level of the log is.

    :param text: What a person looks for in every log.
    """
    level = logging.INFO if logger.hasHandlers() else logging.WARNING
    logger.handle(logger.makeRecord(logger.name, level, __file__, 0, text, (), None))


def first_line(runtime: Runtime, queues: t.Iterable[str]) -> str:
    """Tell what a worker works with: release, sequences, database, broker, queues; no password.

    :param runtime: The application's runtime, in a worker.
    :param queues: The names of the queues that it consumes.
    """
    assert runtime.worker is not None
    names = sequence_names()
    known = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
    parts = (
        f"sequences {known}"
        if names
        else "no sequences: does SEQUENCE_IMPORTS name their modules?",
        f"database {_shown_url(runtime.worker.engine.url)}",
        f"broker {shown_broker(runtime.celery)}",
        f"queues {', '.join(sorted(queues))}",
    )
    return f"flask-sequence {importlib.metadata.version('flask-sequence')}: {'; '.join(parts)}"


def _shown_url(url: URL) -> str:
    query = {name: MASK if is_secret(name) else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)
