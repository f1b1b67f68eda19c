"""Private servers for tests that restart or kill them, each on a free port in a folder of its own.

They are context managers, and are stopped by the process id that they were started with.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import typing as t
from pathlib import Path

import pytest

from tests.support.hosts import Host
from tests.support.services import is_answering
from tests.support.waiting import wait_until
from tests.support.workers import family_of


def free_port() -> int:
    """Give a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server(abc.ABC):
    """A server process; ``start`` and ``kill`` may follow each other, the data stay.

    :param host: The host that it runs on, if not this one; then it is reached from here by a socket
        file, and from other hosts at ``remote_url``.
    """

    program: t.ClassVar[str]
    """The program that must be installed."""
    user: t.ClassVar[str | None] = None
    """The user that it runs as if the tests run as root."""
    url: str
    """Its address, as in ``tests.support.services``."""
    remote_url: str
    """Its address from another host."""
    seconds: t.ClassVar[float] = 30.0
    """How long starting and stopping may take."""
    crash_signal: t.ClassVar[signal.Signals] = signal.SIGKILL
    """What ends it at once."""

    def __init__(self, host: Host | None = None) -> None:
        self.host = host
        if shutil.which(self.program) is None:
            message = f"{self.program} is not installed"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
        # Not in pytest's folders: another user may not enter them, and a socket's path is short.
        self.folder = Path(tempfile.mkdtemp(prefix="fs-"))
        self.port = free_port()
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.log.touch()
        self._give_away()

    def __enter__(self) -> t.Self:
        try:
            self.prepare()
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:  # noqa: B027
        """Make what stands in the folder before the first start."""

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Give the command that runs the server in the foreground."""

    def environment(self) -> dict[str, str]:
        """Give the environment variables that the command needs beside the usual ones."""
        return {}

    def start(self) -> t.Self:
        """Start it, and wait until it answers."""
        command, user = self.command(), self._user
        if self.host is not None:  # entering a namespace takes root
            switch = () if user is None else _switch_to(user)
            command, user = [*self.host.enter, *switch, *command], None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._has_answered, self.seconds, message=lambda: self.log.read_text("utf-8"))
        return self

    def stop(self) -> None:
        """Let it end in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it started, without warning."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it, and start it again with what it had saved."""
        self.kill()
        self.start()

    def crash(self) -> None:
        """Let it end at once, as ``pg_ctl -m immediate`` does, and start it again."""
        self._end(self.crash_signal)
        self.start()

    def pause(self) -> None:
        """Let it accept connections and answer none, as if a network had swallowed it."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._send(signal.SIGCONT)

    @property
    def address(self) -> str:
        """Where it listens."""
        return "127.0.0.1" if self.host is None else self.host.address

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def main_pid(self) -> int:
        """The process id to ask for an end in good order."""
        return self.pid

    @property
    def _user(self) -> str | None:
        return self.user if os.geteuid() == 0 else None

    def _give_away(self) -> None:
        if self._user is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self._user, self._user)

    def _has_answered(self) -> bool:
        ended = None if self._process is None else self._process.poll()
        assert ended is None, f"{self.program} ended with {ended}:\n{self.log.read_text('utf-8')}"
        return is_answering(self.url)

    def _send(self, number: signal.Signals) -> None:
        for pid in family_of(self.pid):  # its children may have left the process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            if number is signal.SIGTERM:
                os.kill(self.main_pid, number)
            else:
                self._send(number)
            self._process.wait(self.seconds)
        self._process = None

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _switch_to(user: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")


class PostgreSQLServer(Server):
    """PostgreSQL. A kill takes down its children too: ``restart`` is a crash, with recovery."""

    program = "postgres"
    user = "postgres"
    crash_signal = signal.SIGQUIT

    @property
    def url(self) -> str:  # type: ignore[override]
        """The address of its database ``postgres``."""
        if self.host is None:
            return self.remote_url
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}&port={self.port}"

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The address of that database from another host."""
        return f"postgresql+psycopg://postgres@{self.address}:{self.port}/postgres"

    def prepare(self) -> None:
        """Make the data folder."""
        data = str(self.folder / "data")
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", data)
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 192.0.2.0/24 trust\n")

    def command(self) -> list[str]:
        """Give the command."""
        data, port, sockets = str(self.folder / "data"), str(self.port), str(self.folder)
        return ["postgres", "-D", data, "-p", port, "-k", sockets, "-h", self.address]


class MariaDBServer(Server):
    """MariaDB."""

    program = "mariadbd"
    user = "mysql"

    @property
    def url(self) -> str:  # type: ignore[override]
        """The address of the server."""
        if self.host is None:
            return self.remote_url
        return f"mariadb+pymysql://root@localhost/?unix_socket={self.folder / 's'}"

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The address of the server from another host."""
        return f"mariadb+pymysql://root@{self.address}:{self.port}/"

    def prepare(self) -> None:
        """Make the data folder."""
        data = f"--datadir={self.folder / 'data'}"
        self._run("mariadb-install-db", "--no-defaults", data, "--skip-test-db")

    def start(self) -> t.Self:
        """Start it; what a killed one has left would be asked in its stead."""
        (self.folder / "s").unlink(missing_ok=True)
        return super().start()

    def _has_answered(self) -> bool:
        # PyMySQL leaves a socket open that finds nobody.
        waits = self.host is not None and not (self.folder / "s").exists()
        return not waits and super()._has_answered()

    def command(self) -> list[str]:
        """Give the command."""
        return [
            *("mariadbd", "--no-defaults", f"--datadir={self.folder / 'data'}"),
            *(f"--port={self.port}", f"--bind-address={self.address}"),
            f"--socket={self.folder / 's'}",
            *("--skip-grant-tables", "--skip-networking=0", "--skip-name-resolve"),
            "--innodb-buffer-pool-size=64M",
        ]


class RedisServer(Server):
    """Redis, which keeps nothing over a restart."""

    program = "redis-server"

    @property
    def url(self) -> str:  # type: ignore[override]
        """The address of its first database."""
        return self.remote_url if self.host is None else f"unix://{self.folder / 's'}"

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The address of that database from another host."""
        return f"redis://{self.address}:{self.port}/0"

    def command(self) -> list[str]:
        """Give the command."""
        port = str(self.port)
        where = ["--bind", self.address, "--dir", str(self.folder)]
        if self.host is not None:
            where += ["--unixsocket", str(self.folder / "s"), "--protected-mode", "no"]
        return ["redis-server", "--port", port, *where, "--save", "", "--appendonly", "no"]


class RabbitMQServer(Server):
    """RabbitMQ; it takes about 20 seconds to start."""

    program = "rabbitmq-server"
    user = "rabbitmq"
    seconds = 90.0

    @property
    def url(self) -> str:  # type: ignore[override]
        """The address of its only virtual host."""
        return self.remote_url

    @property
    def remote_url(self) -> str:  # type: ignore[override]
        """The same; it has no socket file."""
        return f"amqp://guest:guest@{self.address}:{self.port}//"

    def prepare(self) -> None:
        """Choose a second port: its nodes talk to each other on one."""
        self.node_port = free_port()
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "own.conf").write_text("loopback_users = none\n")
        self._give_away()

    def command(self) -> list[str]:
        """Give the command."""
        return ["rabbitmq-server"]

    def _has_answered(self) -> bool:
        if self.host is None:
            return super()._has_answered()
        return self._told.count("Server startup complete") > self._starts

    def start(self) -> t.Self:
        """Start it."""
        self._starts = self._told.count("Server startup complete")
        return super().start()

    @property
    def _told(self) -> str:
        return "".join(path.read_text("utf-8") for path in self.folder.glob("logs/*.log"))

    @property
    def main_pid(self) -> int:
        """The process id of the Erlang machine, which a shell script has started."""
        return int((self.folder / "pid").read_text())

    def environment(self) -> dict[str, str]:
        """Keep everything that it writes in the folder."""
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"fs{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.address,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.node_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "own.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
        }
