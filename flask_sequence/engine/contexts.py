"""App contexts and sessions at hand, and how a run is apart from them."""

from __future__ import annotations

import contextlib
import logging
import typing as t

import sqlalchemy as sa
from flask import has_app_context
from sqlalchemy.orm import object_session

from ..rows.models import SequenceRun
from ..runtime import Runtime

logger: logging.Logger = logging.getLogger("flask_sequence")


@contextlib.contextmanager
def own_context(runtime: Runtime) -> t.Iterator[None]:
    """Push an app context of its own, and leave no session behind, whatever its teardown does.

    An error in the application's teardown, after what was done in the context, is logged.
    """
    context = runtime.app.app_context()
    done = False
    try:
        with context:
            yield
            done = True
    except BaseException as error:
        # A teardown function that raises keeps those before it from being called.
        with contextlib.suppress(Exception), context:
            runtime.db.session.remove()
        if not done or not isinstance(error, Exception):
            raise
        logger.exception("An error in the application's teardown")


@contextlib.contextmanager
def without_session(runtime: Runtime) -> t.Iterator[None]:
    """Keep the session at hand away from those of steps that are performed here meanwhile.

    A ``db.session`` that goes by the thread, as fixtures make it, would be removed with each
    step's app context. What it has loaded is read again later.
    """
    registry = runtime.db.session.registry
    mine = registry() if has_app_context() and registry.has() else None
    if mine is None:
        yield
        return
    registry.clear()
    try:
        yield
    finally:
        registry.set(mine)
        for row in mine:
            if not mine.is_modified(row):
                mine.expire(row)


def identity_of(run: SequenceRun) -> int | None:
    """Return the id of a run, also where its attributes are expired and its session is gone."""
    identity = sa.inspect(run).identity
    return identity[0] if identity else run.id


def expire(run: SequenceRun) -> None:
    """Let a run be read again by whichever session it is in, if it is in one."""
    session = object_session(run)
    if session is not None and sa.inspect(run).persistent:
        session.expire(run)
