"""One storm, from the servers to the result."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import replace
from pathlib import Path

from tests.storm.checker import check
from tests.storm.crew import Crew
from tests.storm.ledger import Reader
from tests.storm.nemesis import Nemesis
from tests.storm.past import fill_past
from tests.storm.place import BEGAN, Options, Place
from tests.storm.progress import Progress
from tests.storm.report import Result
from tests.storm.servers import open_broker, open_database
from tests.storm.strangers import NOTES, Strangers
from tests.storm.tables import make_tables
from tests.support.application import close_app
from tests.support.hosts import Host, Network, require
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

POLL_SECONDS = 1.0
START_SECONDS = 60.0
"""How long the starters may take to start."""


def run_storm(options: Options, output: Path, stream: t.TextIO = sys.stderr) -> Result:
    """Have a storm, and judge it.

    :param options: Which.
    :param output: Where to leave the workers' logs if it fails.
    :param stream: Where to show the progress.
    """
    folder = Path(tempfile.mkdtemp(prefix="fs-storm-"))
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        hosts = stack.enter_context(_hosts()) if options.partition else {}
        database = stack.enter_context(
            open_database(options.database, folder, hosts.get("database"))
        )
        broker = stack.enter_context(open_broker(options.broker, folder, hosts.get("broker")))
        place = Place(str(folder), database.remote_url, broker.celery, 0.0, options)
        place.save()
        judge = replace(place, database=database.url)
        make_tables(judge)
        working = [host for name, host in hosts.items() if name.startswith("work")]
        crew = stack.enter_context(Crew(place, working))
        starters = stack.enter_context(_starters(place, hosts.get("web")))
        place = replace(place, began=time.time())
        (folder / BEGAN).write_text(str(place.began))
        strangers = Strangers(replace(place, database=database.url))
        past = fill_past(strangers.engine, options)
        nemesis = Nemesis(place, crew, database, broker, strangers, working)
        reader = Reader(judge)
        stack.callback(close_app, reader.app)
        nemesis.start()
        _watch(nemesis, starters, crew, reader, Progress(options.runs, stream))
        crew.dismiss()
        result = _judge(place, nemesis, starters, crew, reader, load, past)
        if result.problems:
            _keep_logs(folder, output)
    return result


@contextlib.contextmanager
def _hosts() -> t.Iterator[dict[str, Host]]:
    require()
    names = ("work1", "work2", "web", "database", "broker")
    with Network(*names) as network:
        yield {name: network[name] for name in names}


@contextlib.contextmanager
def _starters(place: Place, host: Host | None) -> t.Iterator[list[subprocess.Popen[bytes]]]:
    path = os.pathsep.join((place.folder, str(ROOT)))
    environment = {**os.environ, **place.environment, "PYTHONPATH": path}
    started = []
    for number in range(place.options.starters):
        with (Path(place.folder) / f"starter-{number}.log").open("wb") as log:
            enter = () if host is None else host.enter
            command = [*enter, sys.executable, "-m", "tests.storm.starter", str(number)]
            started.append(
                subprocess.Popen(
                    command,
                    cwd=place.folder,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        count, files = len(started), Path(place.folder)
        wait_until(lambda: len([*files.glob("starts-*")]) == count, START_SECONDS)
        yield started
    finally:
        for starter in started:
            starter.kill()
            starter.wait()


def _watch(
    nemesis: Nemesis,
    starters: list[subprocess.Popen[bytes]],
    crew: Crew,
    reader: Reader,
    progress: Progress,
) -> None:
    """Show the progress until all is done, or nobody may wait any longer."""
    while True:
        answers = reader.refresh()
        counts, is_over = reader.counts, nemesis.is_done
        progress.show("calm " if is_over else "storm", counts, nemesis.faults, answers)
        if is_over:
            crew.refill()
            began = all(starter.poll() is not None for starter in starters)
            if began and answers and counts.finished >= counts.started and counts.past == 0:
                return
            if time.time() > nemesis.last_fault + reader.place.options.settle:
                return
        time.sleep(POLL_SECONDS)


def _judge(
    place: Place,
    nemesis: Nemesis,
    starters: list[subprocess.Popen[bytes]],
    crew: Crew,
    reader: Reader,
    load: float,
    past: set[str],
) -> Result:
    ledger = replace(reader.read(), past=past)
    errors = list(nemesis.errors)
    for number, starter in enumerate(starters):
        if starter.poll() != 0:
            log = (Path(place.folder) / f"starter-{number}.log").read_text()
            errors.append(f"starter {number} ended with {starter.poll()}: {log[-500:]}")
    return Result(
        options=place.options,
        findings=check(ledger),
        faults=sorted(nemesis.faults, key=lambda fault: fault.at),
        started=reader.start_times(),
        finished=[ending.at for ending in ledger.endings.values()],
        began=place.began,
        last_fault=nemesis.last_fault,
        ended_workers=crew.ended,
        errors=errors,
        unpurged=reader.counts.past,
        standing=reader.standing(),
        loads=(load, os.getloadavg()[0]),
    )


def _keep_logs(folder: Path, output: Path) -> None:
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    names = ("*.log", "starts-*", "attempts", NOTES)
    for path in (path for name in names for path in folder.glob(name)):
        shutil.copy(path, logs / path.name)
