"""Sequences of an application that is deployed again: the environment names its release."""

from __future__ import annotations

import os
import time

from flask_sequence import BaseSequence, Step
from tests.support.working import First, Noted, Second

RELEASE = "FLASK_SEQUENCE_TEST_RELEASE"
"""The environment variable that names the release of a worker's code."""


class Busy(Noted):
    def work(self) -> None:
        time.sleep(0.1)


class BusyToo(Busy):
    pass


class BusyLast(Busy):
    pass


class Added(Noted):
    pass


class Load(BaseSequence):
    steps = (Busy, BusyToo, BusyLast)


def released() -> tuple[type[Step], ...]:
    return (First, Second) if os.environ.get(RELEASE, "1") == "1" else (First, Added, Second)


class Grown(BaseSequence):
    steps = released()
