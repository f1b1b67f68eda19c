"""Set up an application in a new folder, post messages to it, kill its worker, and count.

It makes the database from an empty migrations folder, starts the web application and a worker,
posts messages through the form, kills the worker in the middle, and counts what has come of it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

from .checks import Result, check_inbox, check_mails, check_pages, check_runs, check_team
from .letters import LETTERS
from .processes import Service, Supervisor, free_port, run_flask
from .progress import STEPS, Progress
from .visitors import Reader, Visitors

TEAM = (
    "Ada Lovelace <ada@example.com>",
    "Grace Hopper <grace@example.com>",
    "Tim Berners-Lee <tim@example.com>",
)
LEASE_SECONDS = 5
SWEEP_SECONDS = 1
IMPATIENT = 5
"""Every how manyth visitor clicks twice."""
KILL_AT = 0.3
"""The share of the steps after which the worker is killed."""
TIMEOUT_SECONDS = 300.0
LOOK_SECONDS = 0.25
ENDED = {"finished", "failed", "cancelled"}


def main() -> int:
    """Run the demo.

    :return: The exit code: 0 if all finished and each effect is there exactly once, else 1.
    """
    options = _options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="flask-sequence-demo-"))
    good = False
    try:
        with Supervisor() as supervisor:
            stays = sys.stdin.isatty() and sys.stdout.isatty()
            good = _show(folder, supervisor, options, stays=stays)
            if stays:
                threading.Event().wait()
    except KeyboardInterrupt:
        print("\nEnded.")
    except Exception as error:
        good = False
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        if good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"Logs, database and mails are left in {folder}", file=sys.stderr)
    return 0 if good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/demo", description=__doc__)
    parser.add_argument("--database", metavar="URL", help="an empty database; default: SQLite")
    parser.add_argument("--broker", metavar="URL", help="an empty broker; default: files")
    parser.add_argument("--port", type=int, help="of the pages; default: a free one")
    return parser.parse_args()


def _interrupt(*_: object) -> t.NoReturn:
    raise KeyboardInterrupt


def _show(
    folder: Path, supervisor: Supervisor, options: argparse.Namespace, *, stays: bool
) -> bool:
    password = f"demo-{secrets.token_hex(4)}"
    env = _environment(folder, password, options)
    _set_up(folder, env)
    port = free_port(options.port)
    address = f"http://127.0.0.1:{port}"
    web = Service("web", ["run", "--port", str(port)], env, folder)
    worker = Service("worker", ["sequence", "worker", "-c", "2"], env, folder)
    print("\nThe web application and a worker with 2 processes start.")
    supervisor.start(web, worker)

    began = time.monotonic()
    visitors = Visitors(address, LETTERS, IMPATIENT)
    visitors.start()
    messages = _watch(visitors, Reader(address, password), worker)
    seconds = time.monotonic() - began
    good = _report(messages, visitors, folder, seconds)
    if stays:
        print("\nIt goes on running for you to try. Ctrl-C ends it.")
        print(f"  Form:  {address}/\n  Inbox: {address}/inbox  password: {password}", flush=True)
    return good


def _environment(folder: Path, password: str, options: argparse.Namespace) -> dict[str, str]:
    ours = ("FLASK_", "CELERY_", "DATABASE_URL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {
        "INSTANCE_PATH": str(folder),
        "FLASK_INBOX_PASSWORD": password,
        "FLASK_MESSAGES_PER_HOUR": "1000",
        "FLASK_SEQUENCE_LEASE_SECONDS": str(LEASE_SECONDS),
        "FLASK_SEQUENCE_SWEEP_SECONDS": str(SWEEP_SECONDS),
        "PYTHONUNBUFFERED": "1",
    }
    if options.database:
        env["DATABASE_URL"] = options.database
    if options.broker:
        env["CELERY_BROKER_URL"] = options.broker
    return env


def _set_up(folder: Path, env: t.Mapping[str, str]) -> None:
    print(f"A new application in {folder}")
    migrations = ("--directory", str(folder / "migrations"))
    for command in (
        ("sequence", "init", *migrations),
        ("db", "upgrade", *migrations),
        ("db", "migrate", *migrations, "-m", "Create the team and its messages"),
        ("db", "upgrade", *migrations),
        ("add-members", *TEAM),
    ):
        began = time.monotonic()
        shown = " ".join(command[:2]) if command[0] != "add-members" else "add-members ..."
        print(f"  $ flask {shown:<16}", end="", flush=True)
        run_flask(command, env)
        print(f"{time.monotonic() - began:4.1f} s")


def _watch(visitors: Visitors, reader: Reader, worker: Service) -> list[dict[str, t.Any]]:
    progress = Progress(len(LETTERS))
    until = time.monotonic() + TIMEOUT_SECONDS
    killed = False
    while True:
        messages = reader.messages()
        progress.show(len(visitors.posted), messages)
        if visitors.error:
            raise visitors.error
        if not killed and progress.share >= KILL_AT:
            killed = True
            progress.say("kill -9 of the worker, all its processes; then it starts again")
            worker.kill()
        states = {message["status"] for message in messages}
        if len(visitors.posted) == len(LETTERS) <= len(messages) and states <= ENDED:
            progress.end()
            return messages
        if time.monotonic() > until:
            progress.end()
            print(f"Not finished after {TIMEOUT_SECONDS:.0f} s.")
            return messages
        time.sleep(LOOK_SECONDS)


def _report(
    messages: list[dict[str, t.Any]], visitors: Visitors, folder: Path, seconds: float
) -> bool:
    results: list[Result] = [
        check_inbox(messages, LETTERS),
        check_team(messages, len(TEAM)),
        check_runs(messages, len(LETTERS) * len(STEPS)),
        check_pages(visitors.pages(), LETTERS),
        *check_mails(folder / "mails", LETTERS),
    ]
    print(f"\nWhat has come of {len(LETTERS)} messages, every {IMPATIENT}th of them sent twice")
    for good, text in results:
        print(f"  {'ok   ' if good else 'WRONG'}  {text}")
    print(f"  in {seconds:.1f} s", flush=True)
    return all(good for good, _ in results)


if __name__ == "__main__":
    sys.exit(main())
