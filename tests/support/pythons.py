"""The Python interpreters of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path


def find_python(version: str) -> str | None:
    """Find an interpreter, among pyenv's too.

    :param version: As in ``"3.12"``.
    """
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(installed[-1]) if installed else shutil.which(f"python{version}")
