"""Code that has changed since its worker started, which goes on with what it has imported."""

from __future__ import annotations

import logging

from ...definition.registry import step_modules
from ...definition.sources import Source, imported_source, read_source
from ..post import Post

logger: logging.Logger = logging.getLogger("flask_sequence")


class NoticeChangedCode:
    """Tells, once for each change, of a file with steps that is not what the worker runs."""

    def __init__(self, post: Post) -> None:
        self._seen: dict[str, Source] = {}
        self()

    def __call__(self) -> None:
        """Look at each file."""
        for source in filter(None, map(imported_source, step_modules())):
            before = self._seen.get(source.path, source)
            now = read_source(source.path, before)
            if now is None:
                continue
            self._seen[source.path] = now
            if now.digest not in (before.digest, source.digest):
                logger.warning(
                    "%s has changed since this worker started, which runs the old code until you"
                    " restart it",
                    source.path,
                )
