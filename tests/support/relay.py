"""A TCP relay that puts a distance between a process and its server, and counts the round trips."""

from __future__ import annotations

import asyncio
import contextlib
import threading
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
        self.port = 0
        """Where it listens."""
        self._server = (host, port)
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

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
        address = sa.make_url(url).set(host="127.0.0.1", port=self.port)
        return address.render_as_string(hide_password=False)

    def __enter__(self) -> t.Self:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = asyncio.start_server(self._connected, "127.0.0.1", 0)
        server = self._loop.run_until_complete(listening)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        connection = _Connection(self)
        ways = ((reader, server_writer, True), (server_reader, writer, False))
        try:
            await asyncio.gather(*(connection.pass_on(*way) for way in ways))
        finally:
            for each in (writer, server_writer):
                each.close()


class _Connection:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._has_answer = True
        """Whether the client has received something since it has sent something."""

    async def pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_client: bool
    ) -> None:
        """Pass on what comes one way, until it ends."""
        parts: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(parts, writer, is_client))
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                if is_client and self._has_answer:
                    self._has_answer = False
                    self._relay.trips += 1
                at = asyncio.get_running_loop().time() + self._relay.seconds / 2
                parts.put_nowait((at, part))
        parts.put_nowait((0.0, b""))
        await sending

    async def _send(
        self,
        parts: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        is_client: bool,
    ) -> None:
        while (due := await parts.get())[1]:
            await asyncio.sleep(due[0] - asyncio.get_running_loop().time())
            if not is_client:
                self._has_answer = True
            with contextlib.suppress(ConnectionError):
                writer.write(due[1])
        with contextlib.suppress(OSError):
            writer.write_eof()
