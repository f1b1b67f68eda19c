"""The demo's processes: set up, started, started again when they died, and ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLASK = (sys.executable, "-m", "flask", "--app", "example_app")
LOOK_SECONDS = 0.1
STOP_SECONDS = 5.0


def free_port(wanted: int | None) -> int:
    """Give a port that nobody listens at.

    :param wanted: The port, if it is to be this one.
    :raises OSError: If it is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", wanted or 0))
        return int(listener.getsockname()[1])


def run_flask(arguments: t.Sequence[str], env: t.Mapping[str, str]) -> None:
    """Run a command of the application, and wait for it.

    :param arguments: What stands after ``flask --app example_app``.
    :param env: The environment variables.
    :raises RuntimeError: With what it printed, if it failed.
    """
    done = subprocess.run(
        [*FLASK, *arguments],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"flask {' '.join(arguments)} failed:\n{done.stdout}")


class Service:
    """A command that is to run all the time, in a process group of its own.

    :param name: What to call its log.
    :param arguments: What stands after ``flask --app example_app``.
    :param env: The environment variables.
    :param folder: Where its log is written.
    """

    def __init__(
        self, name: str, arguments: t.Sequence[str], env: t.Mapping[str, str], folder: Path
    ) -> None:
        self.command = [*FLASK, *arguments]
        self.env = dict(env)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of its main process and of its process group."""
        assert self._process is not None
        return self._process.pid

    def is_dead(self) -> bool:
        """Tell whether its main process has ended."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask_to_stop(self) -> None:
        """Let it finish what it has in hand."""
        if not self.is_dead():
            os.kill(self.pid, signal.SIGTERM)

    def kill(self, *, wait: float = 0.0) -> None:
        """Kill the main process and its children, those too that outlived it.

        :param wait: The most seconds to wait before, for the main process to end by itself.
        """
        process = self._process  # The supervisor may put the next one there meanwhile.
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Supervisor:
    """Keeps services running, whoever kills them, until the block is left."""

    def __init__(self) -> None:
        self._services: list[Service] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._guardian = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("guardian.py"))],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> t.Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        for service in self._services:
            service.ask_to_stop()
        for service in self._services:
            service.kill(wait=STOP_SECONDS)
            self._tell("-", service)
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()

    def start(self, *services: Service) -> None:
        """Start services, and again whenever they have died.

        :param services: What to keep running.
        """
        for service in services:
            service.start()
            self._tell("+", service)
            self._services.append(service)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for service in self._services:
                if service.is_dead():
                    service.kill()
                    self._tell("-", service)
                    service.start()
                    self._tell("+", service)

    def _tell(self, change: str, service: Service) -> None:
        assert self._guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(f"{change}{service.pid}", file=self._guardian.stdin, flush=True)
