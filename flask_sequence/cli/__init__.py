"""``flask sequence``: one file for each group of commands; it prints, and decides nothing.

It knows click, and of what stands below the verbs of ``engine.control``.
"""

from . import migration, runs, worker
from .group import sequence_cli

__all__ = ["migration", "runs", "sequence_cli", "worker"]
