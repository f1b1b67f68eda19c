"""What is kept of a user's exception: text, sanitised and bounded, never the object."""

from __future__ import annotations

import traceback
import unicodedata

MAX_LINE = 1_000
"""The most characters of ``run.error``."""
MAX_TRACEBACK = 64_000
"""The most characters of a traceback; of a longer one the end is kept."""


def one_line(error: BaseException) -> str:
    """Describe an exception as ``TypeName: message``, on one line, whatever it does when asked.

    :param error: The exception.
    """
    name = type(error).__name__
    try:
        message = "".join(str(error))
    except BaseException:  # its own code runs here
        message = "(its message cannot be read)"
    return sentence(f"{name}: {message}" if message else name)


def sentence(text: str) -> str:
    """Put a text on one line that can be stored and shown.

    :param text: Any text.
    """
    line = sanitise(" ".join(text[: 2 * MAX_LINE].split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def long_text(error: BaseException) -> str:
    """Format an exception with its traceback and causes.

    :param error: The exception.
    """
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:
        text = f"{one_line(error)}\n(its traceback cannot be formatted)"
    whole = len(text)
    text = sanitise(text[-MAX_TRACEBACK:])
    if max(whole, len(text)) <= MAX_TRACEBACK:
        return text
    return f"…{text[1 - MAX_TRACEBACK :]}"


def sanitise(text: str) -> str:
    """Replace what a database refuses to store, or a terminal would obey.

    :param text: Any text.
    """
    return "".join(map(_harmless, text))


def _harmless(character: str) -> str:
    if character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]
