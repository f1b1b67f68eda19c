"""kombu's transport over a folder: messages as files, without a server."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pathlib
import time
import typing as t
import uuid
from collections import deque

from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from ..errors import SetupError
from .folders import (
    Binding,
    Folders,
    are_messages,
    make_folder,
    names_in,
    read_file,
    remove_litter,
    write_file,
)

FOLDERS = ("data_folder_in", "data_folder_out", "control_folder")
"""The transport options that name the folders."""
POLLING_SECONDS = 0.1
"""How long between two looks into an idle folder."""
FIRST_POLLING_SECONDS = 0.005
"""How long between the first two looks after a message."""
LISTING_SECONDS = 0.25
"""For how long the list of a queue's files is used before the folder is read again."""
SIGN_SECONDS = 60.0
"""How long between two signs of life of a queue that has one consumer."""
DEAD_SECONDS = 300.0
"""How long after the last sign of life such a queue is dead."""

_count = itertools.count()


def check_message(message: t.Any, channel: t.Any) -> None:
    """Raise on what would end a worker that takes it for a message.

    :param message: What came.
    :param channel: The channel that it came through.
    """
    properties, headers = message["properties"], message["headers"]
    hash(properties["delivery_tag"]), hash(headers.get("task"))
    properties["delivery_info"]["exchange"], properties["delivery_info"]["routing_key"]
    channel.decode_body(message["body"], properties.get("body_encoding"))


class Channel(virtual.Channel):
    """Puts messages into, and takes them out of, one folder per queue.

    The name of a message's file begins with its priority and the time of its publication, so the
    folder in the order of the names is the queue. Whoever removes a file has the message: nobody
    else can, and a process that is killed before leaves it in the queue.
    """

    supports_fanout = True
    connection: Transport

    def __init__(self, connection: Transport, **kwargs: t.Any) -> None:
        super().__init__(connection, **kwargs)
        self._pid = os.getpid()
        self._folders: Folders = connection.folders
        self._listings: dict[str, tuple[float, deque[str]]] = {}

    def prepare_queue_arguments(
        self, arguments: dict[str, t.Any] | None, **kwargs: t.Any
    ) -> dict[str, t.Any]:
        """Keep a queue's expiry, by which `_new_queue` knows that it has one consumer."""
        return {**(arguments or {}), "x-expires": kwargs.get("expires")}

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: t.Any) -> None:
        folder = self._folders.queue(queue)
        make_folder(folder)
        remove_litter(folder)
        only_one = auto_delete and (kwargs.get("arguments") or {}).get("x-expires")
        if only_one and queue not in self.connection.signs:
            # What is still there was meant for a process that is gone, as an old "shutdown".
            self._purge(queue)
            self.connection.signs[queue] = time.monotonic() + SIGN_SECONDS

    def _put(self, queue: str, message: t.Any, **kwargs: t.Any) -> None:
        properties = message["properties"]
        # A message that a stopping worker gives back keeps its place.
        published = properties.setdefault("published_ns", time.time_ns())
        priority = self._get_message_priority(message, reverse=True)
        place = f"{priority}-{published:020d}-{next(_count):010d}-{uuid.uuid4().hex}"
        write_file(self._folders.queue(queue) / f"{place}.msg", dumps(message))

    def _put_fanout(self, exchange: str, message: t.Any, routing_key: str, **_: t.Any) -> None:
        for queue in {queue for _, _, queue in self.get_table(exchange)}:
            self._put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> t.Any:
        if self.connection.signs.get(queue, math.inf) < time.monotonic():
            self._bind_again(queue)
        folder = self._folders.queue(queue, incoming=True)
        until, names = self._listings.get(queue, (0.0, deque[str]()))
        fresh = time.monotonic() >= until or not names
        while True:
            names = self._list(queue) if fresh else names
            while names:
                message = self._take(folder / names.popleft())
                if message is not None:
                    return message
            if fresh:
                raise virtual.Empty
            fresh = True

    def _list(self, queue: str) -> deque[str]:
        try:
            found = os.listdir(self._folders.queue(queue, incoming=True))
        except FileNotFoundError:
            self._bind_again(queue)
            found = []
        names = deque(sorted(are_messages(found)))
        self._listings[queue] = (time.monotonic() + LISTING_SECONDS, names)
        return names

    def _take(self, path: pathlib.Path) -> t.Any:
        """Read a message and remove its file, or give None if another process did."""
        try:
            message = loads(read_file(path))
            check_message(message, self)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with one file must not end the worker
            self._folders.set_aside(path, error)
            return None
        try:
            path.unlink()
        except FileNotFoundError:
            return None
        return message

    def _size(self, queue: str) -> int:
        return len(are_messages(names_in(self._folders.queue(queue, incoming=True))))

    def _purge(self, queue: str) -> int:
        folder = self._folders.queue(queue, incoming=True)
        removed = 0
        for name in are_messages(names_in(folder)):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                (folder / name).unlink()
                removed += 1
        return removed

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Give the bindings of an exchange, those of other processes and one's own.

        :param exchange: The name of the exchange.
        :return: Routing key, pattern and queue of each.
        """
        known = (self.state.exchanges or {}).get(exchange, {}).get("table", [])
        table = {Binding(key or "", pattern or "", queue) for key, pattern, queue in known}
        folder = self._folders.exchange(exchange)
        for file in [folder / name for name in names_in(folder) if name.endswith(".json")]:
            try:
                entry = loads(read_file(file))
                binding = Binding(*entry["binding"])
                dead = entry["signs"] and time.time() - file.stat().st_mtime > DEAD_SECONDS
            except FileNotFoundError:
                continue
            except (OSError, TypeError, ValueError, LookupError) as error:
                self._folders.set_aside(file, error)
                continue
            if dead:
                self._folders.forget(binding.queue)
            else:
                table.add(binding)
        return list(table)

    def _queue_bind(
        self, exchange: str, routing_key: str | None, pattern: str | None, queue: str
    ) -> None:
        binding = Binding(routing_key or "", pattern or "", queue)
        entry = {"binding": binding, "signs": queue in self.connection.signs}
        write_file(self._folders.binding_file(exchange, binding), dumps(entry))

    def _bind_again(self, queue: str) -> None:
        """Restore what is known of a queue: its folder was deleted, or a sign of life is due."""
        make_folder(self._folders.queue(queue, incoming=True))
        if queue in self.connection.signs:
            self.connection.signs[queue] = time.monotonic() + SIGN_SECONDS
        for exchange, routing_key, arguments in list(self.state.queue_bindings(queue)):
            kind: t.Any = self.typeof(exchange)
            self._queue_bind(exchange, *kind.prepare_bind(queue, exchange, routing_key, arguments))

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, t.Any] | None = None,
        **kwargs: t.Any,
    ) -> None:
        """Remove one binding, for every process."""
        kind: t.Any = self.typeof(exchange or "")
        meta = kind.prepare_bind(queue, exchange, routing_key, arguments)
        self.state.binding_delete(queue, exchange or "", routing_key)
        self._delete(queue, exchange or "", *meta)

    def _delete(self, queue: str, *args: t.Any, **kwargs: t.Any) -> None:
        exchange, routing_key, pattern, _ = args
        table = (self.state.exchanges or {}).get(exchange, {}).get("table", [])
        table[:] = [row for row in table if tuple(row) != (routing_key, pattern, queue)]
        binding = Binding(routing_key or "", pattern or "", queue)
        self._folders.binding_file(exchange, binding).unlink(missing_ok=True)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: t.Any
    ) -> None:
        """Delete a queue with its messages and bindings, also one that others declared.

        :param queue: The name of the queue.
        :param if_unused: Has no effect: who consumes is not known.
        :param if_empty: Do nothing if it holds messages.
        """
        if if_empty and self._size(queue):
            return
        super().queue_delete(queue)
        self.connection.signs.pop(queue, None)
        self._folders.forget(queue)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop consuming; a queue that has only this consumer is deleted."""
        queue = self._tag_to_queue.get(consumer_tag, "")
        super().basic_cancel(consumer_tag)
        # A forked child closes channels that are still its parent's.
        if queue and queue in self.connection.signs and self._pid == os.getpid():
            self.queue_delete(queue)

    def close(self) -> None:
        """Cancel all consumers, and give back what was not acknowledged."""
        self.do_restore: bool = self._pid == os.getpid()
        super().close()


class Transport(virtual.Transport):
    """kombu's transport over a folder: no server, for one machine, safe for many processes.

    It keeps priorities (0 to 9, higher is sooner). Like kombu's own ``filesystem`` transport it
    forgets on SIGKILL what it has handed out: the sweep is for that.

    .. versionadded:: 0.1
    """

    Channel: type[Channel] = Channel
    can_parse_url = True
    connection_errors: tuple[type[Exception], ...] = (OSError,)
    driver_type = driver_name = "filesystem"
    polling_interval: float
    implements: t.Any = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: t.Any, **kwargs: t.Any) -> None:
        self.polling_interval = POLLING_SECONDS
        super().__init__(client, **kwargs)
        options = client.transport_options
        try:
            paths = [pathlib.Path(options[name]) for name in FOLDERS]
        except KeyError as error:
            raise SetupError(
                f"The embedded broker needs {error} in broker_transport_options:"
                " take Celery's settings from flask_sequence.broker.embedded_config()."
            ) from None
        self.folders: Folders = Folders(*paths)
        self.signs: dict[str, float] = {}
        """When the next sign of life is due, of each queue whose one consumer is this process."""
        self._pause = FIRST_POLLING_SECONDS
        self._leave_loop: t.Callable[[], None] | None = None

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Name the folder in logs and banners."""
        return f"filesystem://{self.folders.incoming}"

    def establish_connection(self) -> t.Self:
        """Create the folders, so that a wrong path is reported at once.

        :raises SetupError: They cannot be created, or others can write into them.
        """
        self.folders.make()
        return super().establish_connection()

    def register_with_event_loop(self, connection: t.Any, loop: t.Any) -> None:
        """Deliver from the event loop of Celery's worker, whenever something happens in it.

        Without a loop the processes of Celery's prefork pool would share a pipe and its lock, and
        one that is killed while it waits there, as idle ones do, would take the lock with it.

        :param connection: The connection, this transport.
        :param loop: The event loop.
        """
        reader, writer = os.pipe()
        pid = os.getpid()

        def deliver() -> None:
            # Celery's pool may have looked for work already, and does so next when something
            # happens again.
            if self._deliver_all():
                os.write(writer, b".")

        loop.add_reader(reader, os.read, reader, 1)
        loop.on_tick.add(deliver)
        timer = loop.call_repeatedly(self.polling_interval, lambda: None)  # something happens

        def leave() -> None:
            if os.getpid() != pid:
                return  # a forked child closes it, too, and shares the poll of its parent
            loop.on_tick.discard(deliver)
            timer.cancel()
            loop.remove_reader(reader)
            os.close(reader)
            os.close(writer)

        self._leave_loop = leave

    def close_connection(self, connection: t.Any) -> None:
        """Leave the event loop, and close all channels."""
        if self._leave_loop is not None:
            self._leave_loop()
            self._leave_loop = None
        super().close_connection(connection)

    def _deliver_all(self) -> bool:
        cycle: t.Any = self.cycle
        delivered = False
        with contextlib.suppress(virtual.Empty):
            while True:
                cycle.get(self._deliver)
                delivered = True
        return delivered

    def drain_events(  # type: ignore[override]  # as kombu's own
        self, connection: t.Any, timeout: float | None = None
    ) -> None:
        """Deliver one message; look often after the last one, and more and more rarely then.

        :param timeout: Seconds to wait for it; None waits forever.
        :raises TimeoutError: There was none.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        cycle: t.Any = self.cycle
        while True:
            try:
                cycle.get(self._deliver, timeout=timeout)
            except virtual.Empty:
                left = self._pause if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError from None
                time.sleep(min(self._pause, left))
                self._pause = min(self._pause * 2, self.polling_interval)
                # Before Celery 5.7 a worker acknowledges between two calls only.
                if timeout and not all(one.qos.can_consume() for one in list(self.channels or ())):
                    raise TimeoutError from None
            else:
                self._pause = FIRST_POLLING_SECONDS
                return
