"""``bin/model``: let histories happen, and exit with 0 if none of them shows a fault."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import sys
import tempfile
import time
import typing as t
from pathlib import Path

import pytest

from tests.conftest import create_tables
from tests.model.histories import STEPS, Fault, shorten, tell
from tests.model.simulation import Simulation

TOLD_SECONDS = 10.0
"""How often it tells how far it is."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(prog="bin/model", description=__doc__)
    parser.add_argument("--histories", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first one; 1")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"actions of each; {STEPS}")
    parser.add_argument("--shorten", action="store_true", help="leave out what a fault needs not")
    parser.add_argument("--faults", type=int, default=0, help="stop after so many; 0: never")
    return parser


@contextlib.contextmanager
def deployment() -> t.Iterator[Simulation]:
    """Set a deployment up, with a database of its own."""
    logging.disable(logging.CRITICAL)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "model.sqlite"
        create_tables(f"sqlite:///{path}")
        world = Simulation(Path(folder), str(path), patch)
        try:
            yield world
        finally:
            world.close()
            logging.disable(logging.NOTSET)


def search(options: argparse.Namespace) -> list[Fault]:
    """Let the histories happen, and tell of each fault as it is found."""
    began = told = time.monotonic()
    faults: list[Fault] = []
    with deployment() as world:
        gc.freeze()
        for number in range(options.histories):
            fault = tell(world, options.seed + number, options.steps)
            if fault is not None:
                faults.append(shorten(world, fault) if options.shorten else fault)
                print(faults[-1], flush=True)
                if len(faults) == options.faults:
                    break
            if time.monotonic() - told > TOLD_SECONDS:
                told = time.monotonic()
                seconds = told - began
                print(f"{number + 1} histories, {len(faults)} faults, {seconds:.0f} s", flush=True)
    seconds = time.monotonic() - began
    print(f"{number + 1} histories in {seconds:.0f} s: {len(faults)} faults", flush=True)
    return faults


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Run the command."""
    return 1 if search(make_parser().parse_args(arguments)) else 0


if __name__ == "__main__":
    sys.exit(main())
