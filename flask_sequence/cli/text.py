"""What the commands print: one line whatever it holds, and tables."""

from __future__ import annotations

import datetime
import re
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


def print_table(
    header: tuple[str, ...], rows: t.Iterable[tuple[t.Any, ...]], indent: str = ""
) -> None:
    """Print rows under a header, in columns."""
    cells = [
        header,
        *(tuple("" if v is None else escape(str(v)) for v in row) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + line.rstrip())
