"""Steps that end in every way a step should not, for real worker processes."""

from __future__ import annotations

import ctypes
import os
import typing as t

from celery.exceptions import Ignore, Reject, Retry

from flask_sequence import BaseSequence
from tests.support.working import First, Noted, Second


class TwoArguments(Exception):  # noqa: N818
    """Can be pickled, and not be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Silent(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def lambda_error() -> Exception:
    error = ValueError("holds a function")
    error.why = lambda: None  # type: ignore[attr-defined]
    return error


def local_error() -> Exception:
    class Local(Exception):  # noqa: N818
        pass

    return Local("of a class in a function")


RAISED: dict[str, t.Callable[[], BaseException]] = {
    "two arguments": lambda: TwoArguments("a", "b"),
    "silent": Silent,
    "lambda": lambda_error,
    "local": local_error,
    "exit": lambda: SystemExit(3),
    "exit 0": lambda: SystemExit(0),
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
    "celery retry": lambda: Retry("later"),
    "ignore": Ignore,
    "reject": lambda: Reject("no", requeue=False),
    "requeue": lambda: Reject("again", requeue=True),
}
"""What makes each exception, by the value of ``kind`` in the run's data."""


class Raise(Noted):
    max_retries = 1
    default_retry_delay = 0

    def work(self) -> None:
        raise RAISED[self.data["kind"]]()


class Hog(Noted):
    """Takes all the memory that there is, to the last page."""

    max_retries = 1
    default_retry_delay = 0

    def work(self) -> None:
        taken: list[bytearray] = []
        size = 1 << 24
        while True:
            try:
                taken.append(bytearray(size))
            except MemoryError:
                if size < 1 << 12:
                    raise
                size >>= 1


class Die(Noted):
    """Kills its process each time."""

    def work(self) -> None:
        match self.data["kind"]:
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)


class BadRaise(BaseSequence):
    steps = (First, Raise, Second)


class BadHog(BaseSequence):
    steps = (First, Hog, Second)


class BadDie(BaseSequence):
    steps = (First, Die, Second)
