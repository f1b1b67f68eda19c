"""Real worker processes, with signals and logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import typing as t
from pathlib import Path

from tests.support.hosts import Host
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OPTIONS = ("--loglevel", "INFO", "--without-gossip", "--without-mingle")


def write_module(folder: Path, source: str, name: str = "worker_app") -> str:
    """Write the module of an application, and give its name.

    :param folder: Where to write it.
    :param source: Its text; what all lines are indented by is removed.
    :param name: The name of the module.
    """
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return name


class Worker:
    """A worker in a process group of its own.

    :param folder: Its working directory, where the module lies and the log is written.
    :param module: The name of the module; with ``celery`` it holds ``celery_app``, else ``app``
        or ``create_app``.
    :param options: Options of Celery's worker, for example ``"-c", "2"``.
    :param celery: Start it by ``celery -A`` rather than by ``flask sequence worker``.
    :param env: More environment variables.
    :param host: The host that it runs on, if not this one.
    """

    def __init__(
        self,
        folder: Path,
        module: str,
        *options: str,
        celery: bool = False,
        env: t.Mapping[str, str] | None = None,
        host: Host | None = None,
    ) -> None:
        start = ["flask", "--app", module, "sequence", "worker"]
        if celery:
            start = ["celery", "-A", f"{module}:celery_app", "worker"]
        self.folder = folder
        enter = () if host is None else host.enter
        self.command = [*enter, sys.executable, "-m", *start, *OPTIONS, *options]
        path = os.pathsep.join((str(folder), str(ROOT)))
        self.env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def __enter__(self) -> t.Self:
        return self if self._process else self.start()

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self, *, timeout: float = 30.0) -> t.Self:
        """Start it, and wait until it takes messages.

        :param timeout: The most seconds to wait.
        """
        self.launch()
        wait_until(lambda: self.is_ready or self.exit_code is not None, timeout, message=self._text)
        assert self.exit_code is None, f"the worker ended with {self.exit_code}:\n{self.log}"
        return self

    def launch(self) -> t.Self:
        """Start it, and do not wait."""
        number = sum(1 for _ in self.folder.glob("worker-*.log")) + 1
        self._log = self.folder / f"worker-{number}.log"
        with self._log.open("xb") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The main process."""
        assert self._process is not None, "the worker was not started"
        return self._process

    @property
    def pid(self) -> int:
        """The process id of the main process."""
        return self.process.pid

    @property
    def children(self) -> list[int]:
        """The process ids of the pool's living processes, oldest first."""
        return children_of(self.pid)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    @property
    def is_ready(self) -> bool:
        """Whether it said that it takes messages."""
        return " ready." in self.log

    @property
    def exit_code(self) -> int | None:
        """The exit code of the main process; None while it runs."""
        return self.process.poll()

    def wait_for(self, text: str, timeout: float = 10.0) -> None:
        """Wait until a text stands in the log.

        :param text: The text.
        :param timeout: The most seconds to wait.
        """
        wait_until(lambda: text in self.log, timeout, message=self._text)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process.

        :param number: The signal.
        """
        self.process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait until the main process has ended, and give its exit code.

        :param timeout: The most seconds to wait.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.log}") from None

    def stop(self, timeout: float = 10.0) -> int:
        """Shut it down warmly, and give its exit code.

        :param timeout: The most seconds to wait.
        """
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill the main process and its children, whichever still run."""
        if self._process is None:
            return
        for kill in (os.killpg, os.kill):  # the group outlives its first process
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self.process.wait(10)

    def _text(self) -> str:
        return f"The log:\n{self.log}"


def children_of(pid: int) -> list[int]:
    """Give the process ids of the living children of a process, oldest first.

    :param pid: The parent.
    """
    return [child for child, parent in _living() if parent == pid]


def family_of(pid: int) -> list[int]:
    """Give the process ids of a process and all that descend from it, parents first.

    :param pid: The first of them.
    """
    family, living = [pid], _living()
    for member in family:
        family += [child for child, parent in living if parent == member]
    return family


def _living() -> list[tuple[int, int]]:
    command = ("ps", "-A", "-o", "pid=,ppid=,stat=")
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return sorted((int(row[0]), int(row[1])) for row in rows if row[2][0] != "Z")
