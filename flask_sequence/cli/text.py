"""What the commands print: one line whatever it holds, and tables."""

from __future__ import annotations

import datetime
import re
import shutil
import sys
import typing as t

import click

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: str) -> str:
    """Make control characters and changes of direction visible, so that they do nothing.

    :param text: What is to be printed; it may come from anybody.
    :return: One line.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def shown_time(value: datetime.datetime | None) -> str:
    """Show a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_seconds(seconds: float) -> str:
    """Show how long something takes, or is ago, in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0):.2g} s"


def is_terminal() -> bool:
    """Tell whether a person reads what is printed."""
    return sys.stdout.isatty()


def print_table(
    header: tuple[str, ...], rows: t.Iterable[tuple[t.Any, ...]], indent: str = ""
) -> None:
    """Print rows under a header, in columns; on a terminal each is cut to its width."""
    cells = [
        header,
        *(tuple("" if v is None else escape(str(v)) for v in row) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    most = shutil.get_terminal_size().columns if is_terminal() else None
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = (indent + line).rstrip()
        click.echo(line if most is None or len(line) <= most else line[: most - 1] + "…")
