"""The files in which steps are written, as they were when this process imported them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys


@dataclasses.dataclass(frozen=True)
class Source:
    """A file at one time.

    :param path: Where it is.
    :param stamp: When it was changed, and its size: while both are the same, so is the file.
    :param digest: What it holds.
    """

    path: str
    stamp: tuple[int, int]
    digest: bytes


_imported: dict[str, Source] = {}
"""By the name of the module."""


def note_import(module: str, *, again: bool) -> None:
    """Note the file of a module that is imported, or was just now.

    :param module: Its name.
    :param again: Whether it may have been noted before, and may be another file by now: a reload.
    """
    if not again and module in _imported:
        return
    path = getattr(sys.modules.get(module), "__file__", None)
    found = None if path is None else read_source(path, _imported.get(module))
    if found is not None:
        _imported[module] = found


def imported_source(module: str) -> Source | None:
    """Give the file of a module as it was imported; None: it has none."""
    return _imported.get(module)


def read_source(path: str, before: Source | None) -> Source | None:
    """Look at a file, and read it only if it is not as before; None: it cannot be read."""
    try:
        found = os.stat(path)
        stamp = (found.st_mtime_ns, found.st_size)
        if before is not None and (before.path, before.stamp) == (path, stamp):
            return before
        with open(path, "rb") as file:
            return Source(path, stamp, hashlib.sha256(file.read()).digest())
    except OSError:
        return None  # a deploy may have removed it
