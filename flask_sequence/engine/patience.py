"""Our own statements about a run that is held: how long they wait for the database."""

from __future__ import annotations

import itertools
import logging
import random
import time
import typing as t

from ..failures import one_line
from ..rows import moves, reads
from ..rows.claims import Claim, Row
from ..rows.driver_errors import is_transient, is_unheard
from ..rows.moves import Move
from ..runtime import Runtime
from .connections import own_move, own_statements

logger: logging.Logger = logging.getLogger("flask_sequence")

TRIES = 5
"""How often a statement is sent whose failure says nothing about the database."""
REFUSALS = 20
"""How often a statement is sent that the database asks to repeat: for about half a minute."""
LONGEST_PAUSE = 2.0
"""The most seconds between two tries."""

AnswerT = t.TypeVar("AnswerT")


def make_move(runtime: Runtime, claim: Claim, move: Move) -> bool:
    """Make a move for a claim beside ``db.session``.

    :param runtime: The application's runtime.
    :param claim: The claim.
    :param move: The move.
    :return: Whether it was made; False: the claim is lost.
    :raises Exception: What the database or its driver answered to the last try.
    """
    unanswered = False

    def make_once() -> bool:
        nonlocal unanswered
        may_be_made, unanswered = unanswered, True
        with own_move(runtime) as connection:
            if moves.make(connection, claim, move):
                return True
            row = reads.look(connection, claim.id) if may_be_made else None
            return row is not None and move.went_through(claim, row)

    return until_answered(make_once)


def read_row(runtime: Runtime, run_id: int) -> Row | None:
    """Read where a run stands."""

    def read_once() -> Row | None:
        with own_statements(runtime) as connection:
            return reads.look(connection, run_id)

    return until_answered(read_once)


def until_answered(ask: t.Callable[[], AnswerT]) -> AnswerT:
    """Send our own statement until it is answered.

    A database that is not reached is waited for as long as it takes. One that answers, and asks to
    repeat a statement, is asked a bounded number of times; anything else is an answer, soon.

    :param ask: Sends it.
    :return: The answer.
    :raises Exception: What the last try raised.
    """
    answers = 0
    for tries in itertools.count(1):
        try:
            return ask()
        except Exception as error:
            answers += not is_unheard(error)
            if answers >= (REFUSALS if is_transient(error) else TRIES):
                raise
            if tries == TRIES:
                logger.warning("Waiting for the database: %s", one_line(error))
            pause(tries)
    raise AssertionError("unreachable")  # pragma: no cover


def pause(tries: int) -> None:
    """Wait before the next try, longer from try to try."""
    time.sleep(min(0.02 * 2 ** min(tries, 10), LONGEST_PAUSE) * random.uniform(0.5, 1.0))
