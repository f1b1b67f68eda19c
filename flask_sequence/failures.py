"""What is kept of an exception: text, sanitised and bounded, without secrets; never the object."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import textwrap
import traceback
import types
import typing as t
import unicodedata

from .masking import SHORT, without

MAX_LINE = 1_000
"""The most characters of ``run.error``."""
MAX_TRACEBACK = 64_000
"""The most characters of a traceback; of a longer one the end is kept."""
MAX_BYTES = 65_535
"""The most bytes of one, in UTF-8: what MySQL's smallest type of long texts holds."""
MOST_LINKS = 1_000
"""How many exceptions are looked at that led to one."""
MOST_IN_GROUP = 15
"""How many exceptions of a group are told."""

_OUR_TABLE = re.compile(r"\bsequence_(?:runs|step_runs|workers)\b")
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


@dataclasses.dataclass(frozen=True)
class Failure:
    """What is stored of a failure.

    :param error: One line.
    :param traceback: The traceback with its causes; None: it would tell nothing.
    """

    error: str
    traceback: str | None = None

    def in_ascii(self) -> Failure:
        r"""Give the same for a connection that cannot carry it: ``\U0001f389`` for a character."""
        told = self.traceback and _last(_ascii(self.traceback), "...")
        return Failure(_first(_ascii(self.error), "..."), told)

    def with_remark(self, text: str) -> Failure:
        """Give the same with a remark in brackets, for which a long line is cut.

        :param text: The remark.
        """
        remark = f" ({text})"
        return Failure(_first(self.error, most=MAX_LINE - len(remark)) + remark, self.traceback)


def failure_of(error: BaseException, secrets: t.Collection[str] = ()) -> Failure:
    """Describe what ended a step, whatever the exception does when it is asked.

    :param error: The exception.
    :param secrets: What must not stand in the text, as ``secrets_in`` gives it.
    """
    return Failure(one_line(error, secrets), long_text(error, secrets))


def one_line(error: BaseException, secrets: t.Collection[str] = ()) -> str:
    """Describe an exception as ``TypeName: message``, on one line.

    :param error: The exception.
    :param secrets: What must not stand in the text.
    """
    name, message = type(error).__name__, _message(error, _own_statements(error))
    is_empty = message in ("", f"{name}()")
    return sentence(name if is_empty else f"{name}: {message}", secrets)


def sentence(text: str, secrets: t.Collection[str] = ()) -> str:
    """Put a text on one line that can be stored and shown.

    :param text: Any text.
    :param secrets: What must not stand in it.
    """
    return _first(sanitise(" ".join(without(secrets, text)[: 2 * MAX_LINE].split())))


def long_text(error: BaseException, secrets: t.Collection[str] = ()) -> str:
    """Format an exception with its traceback and causes, as Python does.

    :param error: The exception.
    :param secrets: What must not stand in the text.
    """
    try:
        text = _chain(error, _own_statements(error))
    except BaseException:
        text = f"{one_line(error)}\n(its traceback cannot be formatted)"
    text = without(secrets, text)
    end = text[-MAX_TRACEBACK:]
    return _last(sanitise(end), cut=len(end) < len(text))


def sanitise(text: str) -> str:
    """Replace what a database refuses to store, or a terminal would obey.

    :param text: Any text.
    """
    return "".join(map(_harmless, text))


def names_our_table(statement: object) -> bool:
    """Tell whether a statement is one of ours, or reads or writes what is ours.

    :param statement: Its text, or None.
    """
    return isinstance(statement, str) and _OUR_TABLE.search(statement) is not None


def _harmless(character: str) -> str:
    if character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]


def _ascii(text: str) -> str:
    return text.replace("…", "...").encode("ascii", "backslashreplace").decode()


def _first(text: str, dots: str = "…", *, most: int = MAX_LINE) -> str:
    return text if len(text) <= most else text[: most - len(dots)] + dots


def _last(text: str, dots: str = "…", *, cut: bool = False) -> str:
    if cut or len(text) > MAX_TRACEBACK:
        text, cut = text[len(dots) - MAX_TRACEBACK :], True
    kept = text.encode()
    if len(kept) > MAX_BYTES - len(dots.encode()) * cut:
        text, cut = kept[len(dots.encode()) - MAX_BYTES :].decode(errors="ignore"), True
    return dots + text if cut else text


# Our own statements: an error of theirs is told without what was sent with them


class _Own(t.NamedTuple):
    """An error of one of our own statements."""

    orig: BaseException
    sent: list[str]


def _own_statements(error: BaseException) -> dict[int, _Own]:
    """Find the errors of our statements among what led to an exception, and those of the driver."""
    found: dict[int, _Own] = {}
    with contextlib.suppress(Exception):
        for link in _links(error):
            orig = getattr(link, "orig", None)
            statement = getattr(link, "statement", None)
            if isinstance(orig, BaseException) and names_our_table(statement):
                own = _Own(orig, sorted(_sent(getattr(link, "params", None)), key=len)[::-1])
                found |= {id(link): own, id(orig): own}
    return found


def _links(error: BaseException) -> list[BaseException]:
    links, waiting = dict[int, BaseException](), [error]
    while waiting and len(links) < MOST_LINKS:
        link = waiting.pop()
        if id(link) not in links:
            links[id(link)] = link
            inner = link.exceptions if isinstance(link, BaseExceptionGroup) else ()
            waiting += [one for one in (link.__cause__, link.__context__, *inner) if one]
    return list(links.values())


def _sent(values: t.Any) -> t.Iterator[str]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _sent(value)
    elif type(values) is str and values:
        yield values


def _message(error: BaseException, own: t.Mapping[int, _Own]) -> str:
    """Read the text of an exception; of our statements' only what the driver says of itself."""
    try:
        if id(error) not in own:
            return "".join(str(error))
        orig, sent = own[id(error)]
        told = _driver_message(orig, sent)
    except BaseException:  # its own code runs here
        return "(its message cannot be read)"
    return told if orig is error else f"({_name(type(orig))}) {told}"


def _driver_message(orig: BaseException, sent: t.Collection[str]) -> str:
    # PostgreSQL repeats the row in the lines after the first; MariaDB quotes values, and writes
    # the bytes of what it cannot read.
    first = orig.args[0] if orig.args else None
    text = str(first["M"]) if isinstance(first, dict) and "M" in first else str(orig)
    text = without([value for value in sent if len(value) >= SHORT or not value.isalnum()], text)
    return re.sub(r"'[^']*\\[^']*'", "'…'", text.split("\n", 1)[0])


# The traceback


def _chain(error: BaseException, own: t.Mapping[int, _Own], depth: int = 0) -> str:
    """Format an exception after what led to it; the oldest of very many are left out."""
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    size = 0
    while link is not None and id(link) not in seen and size <= MAX_TRACEBACK:
        seen.add(id(link))
        parts.append(_one(link, own, depth))
        size += len(parts[-1])
        cause, context = link.__cause__, None if link.__suppress_context__ else link.__context__
        link = context if cause is None else cause
        if link is not None and id(link) not in seen:
            parts.append(_CONTEXT if cause is None else _CAUSE)
    return "".join(reversed(parts))


def _one(error: BaseException, own: t.Mapping[int, _Own], depth: int) -> str:
    lines = _stack(error.__traceback__)
    if isinstance(error, SyntaxError):
        lines += traceback.format_exception_only(SyntaxError, error)
    else:
        name, message = _name(type(error)), _message(error, own)
        lines.append(f"{name}: {message}\n" if message else f"{name}\n")
        notes = getattr(error, "__notes__", None)
        lines += [f"{note}\n" for note in notes or () if isinstance(note, str)]
    if isinstance(error, BaseExceptionGroup):
        lines += _members(error, own, depth)
    return "".join(lines)


def _members(
    group: BaseExceptionGroup[t.Any], own: t.Mapping[int, _Own], depth: int
) -> t.Iterator[str]:
    if depth == MOST_IN_GROUP:
        return
    for number, error in enumerate(group.exceptions[:MOST_IN_GROUP], 1):
        yield f"  +---------------- {number} ----------------\n"
        yield textwrap.indent(_chain(error, own, depth + 1), "  | ", lambda line: True)
    if len(group.exceptions) > MOST_IN_GROUP:
        yield f"  +---------------- and {len(group.exceptions) - MOST_IN_GROUP} more\n"


def _stack(frames: types.TracebackType | None) -> list[str]:
    if frames is None:
        return []
    return ["Traceback (most recent call last):\n", *traceback.format_tb(frames)]


def _name(kind: type[BaseException]) -> str:
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
