"""Servers that are there, and do not answer as they should."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t


class SilentBroker:
    """Listens, and never answers; with a full backlog it does not even accept."""

    def __init__(self, *, full: bool) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0 if full else 50)
        self.port = self._listener.getsockname()[1]
        self._filling = [self._fill() for _ in range(4 if full else 0)]

    def _fill(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", self.port))
        return client

    def close(self) -> None:
        """Listen no more."""
        for each in (self._listener, *self._filling):
            each.close()


class DribblingBroker:
    """Answers to whatever it is sent with one byte every half second, without end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._dribble, args=(client,)))
                self._threads[-1].start()

    def _dribble(self, client: socket.socket) -> None:
        # The beginning of an answer of Redis, or of a frame of AMQP whose end is far.
        answer = b"+" if client.recv(1) == b"*" else b"\x01\x00\x00\x00\xff\xff\xff"
        with client, contextlib.suppress(OSError):
            while not self._stopped.wait(0.5):
                client.sendall(answer[:1])
                answer = answer[1:] or b"x"

    def close(self) -> None:
        """End."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


Resolve = t.Callable[..., t.Any]


class Names:
    """Stands in for the resolver, by which the names that end in ``.test`` are found, or are not.

    :param resolve: The system's ``getaddrinfo``.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self.answers = threading.Event()
        """Whether the servers of names answer."""

    def __call__(self, host: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Find a host: ``silent.test`` when the servers answer, ``four.test`` at four addresses."""
        if host == "silent.test":
            self.answers.wait(60)
        if not str(host).endswith(".test"):
            return self._resolve(host, *args, **kwargs)
        found = self._resolve("127.0.0.1", *args, **kwargs)
        return found * 4 if host == "four.test" else found
