"""A TCP relay that puts a distance between a process and its server, and counts the round trips."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import typing as t

import sqlalchemy as sa


class Relay:
    """Passes on what is sent, each way, after half of a round trip.

    A round trip is counted when a client sends something after it has received something, or has
    connected: it has waited for that. What is sent together, or without waiting, counts once.

    :param host: The server's host.
    :param port: Its port.
    :param seconds: What a round trip takes; long enough that nobody who does not wait for an
        answer sends so late.
    """

    def __init__(self, host: str, port: int, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.trips = 0
        """How many round trips there were, on all connections."""
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @classmethod
    def to(cls, url: str, seconds: float = 0.02) -> t.Self:
        """Make one to the server of a database.

        :param url: The address of the database, for SQLAlchemy.
        :param seconds: What a round trip takes.
        """
        address = sa.make_url(url)
        assert address.host is not None
        assert address.port is not None
        return cls(address.host, address.port, seconds)

    def url(self, url: str) -> str:
        """Give the address of a database by way of the relay.

        :param url: Its own address.
        """
        port = self._listener.getsockname()[1]
        return sa.make_url(url).set(host="127.0.0.1", port=port).render_as_string(False)

    def __enter__(self) -> t.Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _start(self, work: t.Callable[..., None], *arguments: t.Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._server)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._sockets.append(each)
                has_answer = threading.Event()
                has_answer.set()
                self._start(self._pass_on, client, server, self._count, has_answer)
                self._start(self._pass_on, server, client, None, has_answer)

    def _count(self, has_answer: threading.Event) -> None:
        if has_answer.is_set():
            has_answer.clear()
            with self._lock:
                self.trips += 1

    def _pass_on(
        self,
        source: socket.socket,
        target: socket.socket,
        count: t.Callable[[threading.Event], None] | None,
        has_answer: threading.Event,
    ) -> None:
        """Pass on what comes one way, until it ends."""
        parts: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._start(self._send, parts, target, None if count else has_answer)
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                if count is not None:
                    count(has_answer)
                parts.put((time.monotonic() + self.seconds / 2, part))
        parts.put((0.0, b""))

    def _send(
        self,
        parts: queue.SimpleQueue[tuple[float, bytes]],
        target: socket.socket,
        has_answer: threading.Event | None,
    ) -> None:
        with contextlib.suppress(OSError):
            while (part := parts.get())[1]:
                time.sleep(max(part[0] - time.monotonic(), 0.0))
                if has_answer is not None:
                    has_answer.set()
                target.sendall(part[1])
            target.shutdown(socket.SHUT_WR)
