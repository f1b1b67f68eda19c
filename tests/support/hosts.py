"""Hosts of one's own, in network namespaces, whose links can be cut without a word.

A router stands between them. Where it swallows what goes to a host and comes from it, nobody is
told: no packet says that a connection has ended. They have no way out, and need root on Linux.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import typing as t
from dataclasses import dataclass

import pytest

_numbers = itertools.count(1)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def _problem() -> str | None:
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    try:
        with Network("probe") as network:
            network["probe"].cut()
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"
    return None


def require() -> None:
    """Skip the test where no hosts can be made; with ``CI=true``, fail it."""
    if problem := _problem():
        if os.environ.get("CI") == "true":
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)


class Network:
    """Some hosts and the router between them.

    :param names: What to call the hosts.
    """

    def __init__(self, *names: str) -> None:
        self.prefix = f"fs{os.getpid()}-{next(_numbers)}"
        self.router = f"{self.prefix}-router"
        self._hosts = {name: Host(self, name, number) for number, name in enumerate(names)}

    def __enter__(self) -> t.Self:
        try:
            _run("ip", "netns", "add", self.router)
            _run("ip", "netns", "exec", self.router, "sh", "-c", _FORWARD)
            for host in self._hosts.values():
                host.attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for host in self._hosts.values():
            with contextlib.suppress(OSError):
                host.remove()
        with contextlib.suppress(OSError):
            _run("ip", "netns", "delete", self.router)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]


_FORWARD = "echo 1 > /proc/sys/net/ipv4/ip_forward"


@dataclass(frozen=True, eq=False)
class Host:
    """One host.

    :param network: Where it is.
    :param name: What it is called.
    :param number: Which of the network's it is.
    """

    network: Network
    name: str
    number: int

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return f"{self.network.prefix}-{self.name}"

    @property
    def address(self) -> str:
        """Its address; of a range that is kept for examples."""
        return f"192.0.2.{4 * self.number + 1}"

    @property
    def enter(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("ip", "netns", "exec", self.namespace)

    def attach(self) -> None:
        """Make it, and its link."""
        router, here, there = self.network.router, f"to{self.number}", "eth0"
        gateway = f"192.0.2.{4 * self.number + 2}"
        _run("ip", "netns", "add", self.namespace)
        _run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        peer = ("peer", "name", here, "netns", router)
        _run("ip", "-n", self.namespace, "link", "add", there, "type", "veth", *peer)
        sides = ((self.namespace, there, self.address), (router, here, gateway))
        for namespace, link, address in sides:
            _run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", link)
            _run("ip", "-n", namespace, "link", "set", link, "up")
        _run("ip", "-n", self.namespace, "route", "add", "default", "via", gateway)

    def cut(self) -> None:
        """Let what goes to it and comes from it vanish."""
        self._change_rules("add")

    def mend(self) -> None:
        """End a cut."""
        self._change_rules("delete")

    def replace(self) -> None:
        """Put a new host at its address: one that knows no connection of the old one's.

        What ran on the old one must have been killed, behind a cut.
        """
        _run("ip", "-n", self.network.router, "link", "delete", f"to{self.number}")
        self.remove()
        self.attach()

    def remove(self) -> None:
        """End all that still runs there, and take the host away."""
        for pid in _run("ip", "netns", "pids", self.namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", self.namespace)

    def _change_rules(self, change: str) -> None:
        for direction in ("to", "from"):
            rule = (direction, self.address, "blackhole")
            _run("ip", "-n", self.network.router, "rule", change, *rule)
