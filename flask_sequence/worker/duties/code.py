"""Code that has changed since its worker started, which goes on with what it has imported."""

from __future__ import annotations

import logging
import os
import sys

from ...definition.registry import step_modules
from ..post import Post

logger: logging.Logger = logging.getLogger("flask_sequence")


class NoticeChangedCode:
    """Tells, once for each change, of a file with steps that is not what the worker runs."""

    def __init__(self, post: Post) -> None:
        self._changed_at: dict[str, int] = {}
        self()

    def __call__(self) -> None:
        """Look at each file."""
        for path in filter(None, map(_file_of, step_modules())):
            try:
                changed_at = os.stat(path).st_mtime_ns
            except OSError:
                continue  # a deploy may have removed it
            if self._changed_at.setdefault(path, changed_at) != changed_at:
                self._changed_at[path] = changed_at
                logger.warning(
                    "%s has changed since this worker started, which runs the old code until you"
                    " restart it",
                    path,
                )


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
