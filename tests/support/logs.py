"""At which level the log tells something."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    import pytest


def level_of(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Give the level of the lines that hold a text, which have one.

    :param caplog: What was logged.
    :param text: The text.
    """
    records = (record for record in caplog.records if text in record.getMessage())
    (level,) = {record.levelname for record in records}
    return level
