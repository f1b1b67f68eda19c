"""``bin/storm``: have a storm, and exit with 0 if nothing was lost and nothing happened twice."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest

from tests.storm import report
from tests.storm.place import Options
from tests.storm.storm import run_storm
from tests.support.waiting import end_well_at_sigterm

CHOICES = {
    "database": ("postgresql", "mariadb", "sqlite"),
    "broker": ("redis", "rabbitmq", "embedded"),
    "pool": ("prefork", "threads", "solo"),
    "peer": ("celery-chain",),
}
HELP = {
    "runs": "how many runs of 5 steps",
    "seconds": "how long faults happen",
    "kill_every": "seconds from one killed or stopped process to the next; 0: none",
    "flushes": "how often the broker is flushed",
    "broker_restarts": "how often the broker is killed and started again",
    "database_restarts": "how often the database is killed and started again; SQLite: locked",
    "seed": "what is done when, and which starts fail",
    "lease": "SEQUENCE_LEASE_SECONDS",
    "sweep": "SEQUENCE_SWEEP_SECONDS; 0: no worker sweeps, which a storm must not survive",
    "workers": "how many workers",
    "concurrency": "how many processes each",
    "starters": "how many processes start runs",
    "burst": "SEQUENCE_BURST_SECONDS",
    "step_seconds": "how long a step takes, on average",
    "goal": "in how many seconds after the last fault all must be done",
    "settle": "how many seconds to wait for it",
    "partition": "put workers, starters, database and broker on hosts of their own, and cut their"
    " links instead of killing processes",
    "cut_every": "seconds from one cut link to the next, with --partition",
    "strangers": "have transactions of others refer to runs and stay open, on PostgreSQL and"
    " MariaDB",
    "past": "how many runs that ended long ago are purged meanwhile, where there are strangers",
    "lock_wait": "after how many seconds the application's statements wait no longer for a lock of"
    " others: lock_timeout, innodb_lock_wait_timeout; 0: as the server does",
    "peer": "do the same work without flask-sequence, for comparison",
    "acks_late": "the peer acknowledges late and rejects on a lost worker",
}


PARTITION = {
    "kill_every": 0.0,
    "flushes": 0,
    "database_restarts": 0,
    "goal": 60.0,
    "settle": 90.0,
}
"""The defaults of a storm that only cuts links."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser: an option for each field of ``Options``, and ``--output``."""
    parser = argparse.ArgumentParser(prog="bin/storm", description=__doc__)
    for field in dataclasses.fields(Options):
        name, default = f"--{field.name.replace('_', '-')}", field.default
        told = f"{HELP.get(field.name, 'which')} (default: %(default)s)"
        if default is True:
            action = argparse.BooleanOptionalAction
            parser.add_argument(name, action=action, default=default, help=told)
        elif isinstance(default, bool):
            parser.add_argument(name, action="store_true", help=HELP[field.name])
        elif field.name in CHOICES:
            choices = CHOICES[field.name]
            parser.add_argument(name, choices=choices, default=default, help=told)
        else:
            parser.add_argument(name, type=type(default), default=default, help=told)
    parser.add_argument("--output", type=Path, default=Path("storm-report"), metavar="DIR")
    return parser


def main() -> int:
    """Have the storm that the command line asks for."""
    parser = make_parser()
    if parser.parse_args().partition:
        parser.set_defaults(**PARTITION)
    arguments = vars(parser.parse_args())
    output: Path = arguments.pop("output")
    options = Options(**arguments)
    if options.peer and options.broker == "embedded":
        print("The peer needs a broker of its own: --broker redis or rabbitmq", file=sys.stderr)
        return 2
    try:
        result = run_storm(options, output)
    except pytest.skip.Exception as missing:
        print(missing, file=sys.stderr)
        return 2
    report.write(result, output)
    print(report.text(result))
    print(f"See {output}/report.txt, report.json and timeline.svg.")
    return 1 if result.problems else 0


if __name__ == "__main__":
    end_well_at_sigterm()
    sys.exit(main())
