"""Run in a test what a worker would: the same runner, in place, without Celery."""

from __future__ import annotations

import logging

from flask import Flask, has_app_context

from ..engine import runner
from ..engine.connections import own_transaction
from ..engine.contexts import without_session
from ..engine.retention import delete_if_ended
from ..engine.transaction import uncommitted
from ..rows import reads
from ..runtime import Runtime, runtime_of

logger: logging.Logger = logging.getLogger("flask_sequence")


def drain(app: Flask, *, ignore_due: bool = False, max_steps: int = 1000) -> int:
    """Run everything that is due, and what follows from it, until nothing is due any more.

    It runs in place, without Celery, and also in a test that is wrapped in a transaction of its
    own, where nothing is published. Runs that ``db.session`` has started and not committed are left
    alone, with a warning in the log. Rows that ``db.session`` has loaded before are read again when
    they are next accessed.

    :param app: The application.
    :param ignore_due: Whether to run at once also what is due later, such as retries.
    :param max_steps: The number of attempts after which to give up.
    :return: The number of attempts at steps that were made.
    :raises AssertionError: If something is still due after ``max_steps`` attempts.

    .. versionadded:: 0.1
    """
    runtime = runtime_of(app)
    _warn_of_uncommitted(runtime)
    with without_session(runtime):
        return _drain(runtime, ignore_due, max_steps)


def _warn_of_uncommitted(runtime: Runtime) -> None:
    session = runtime.db.session
    if has_app_context() and session.registry.has() and (names := uncommitted(session())):
        logger.warning(
            "Started and not committed: %s. drain() leaves them alone: call db.session.commit()"
            " after start().",
            ", ".join(names),
        )


def _drain(runtime: Runtime, ignore_due: bool, max_steps: int) -> int:
    runner.stand_in(runtime)
    attempts = 0
    left_alone: set[tuple[int, int]] = set()
    while True:
        with own_transaction(runtime) as connection:
            row = reads.first_waiting(connection, ignore_due=ignore_due, without=left_alone)
        if row is None:
            return attempts
        if attempts >= max_steps:
            raise AssertionError(
                f"drain() made {attempts} attempts and run {row.id} is still due; increase"
                " max_steps if that is expected."
            )
        outcome = runner.advance(runtime, row.id, row.version, ignore_due=ignore_due)
        delete_if_ended(runtime, row.id, outcome.status)
        attempts += outcome.attempts
        if outcome.attempts == 0:
            left_alone.add((row.id, row.version))
