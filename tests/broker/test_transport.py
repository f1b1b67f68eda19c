"""The transport over a folder: order, faults, queues with one consumer, many processes."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import typing as t

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

from flask_sequence.broker import folders, transport
from flask_sequence.broker.embedded import TRANSPORT, embedded_config
from flask_sequence.errors import SetupError

PROJECT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "instance" / "sequence_broker"


@pytest.fixture
def connect(folder: pathlib.Path) -> t.Iterator[t.Callable[..., Connection]]:
    opened: list[Connection] = []

    def connect(folder: pathlib.Path = folder) -> Connection:
        config = embedded_config(folder)
        opened.append(
            Connection(
                config["broker_url"],
                transport=config["broker_transport"],
                transport_options=config["broker_transport_options"],
            )
        )
        return opened[-1]

    yield connect
    for connection in opened:
        connection.release()


def channel_of(connection: Connection) -> t.Any:
    return connection.default_channel


def send(connection: Connection, body: t.Any, queue: str = "mail", **options: t.Any) -> None:
    connection.Producer().publish(body, routing_key=queue, **options)


def receive(connection: Connection, queue: str = "mail") -> t.Any:
    """Give the body of the next message, acknowledged, or None."""
    message = channel_of(connection).basic_get(queue)
    if message is None:
        return None
    message.ack()
    return message.decode()


def depth(connection: Connection, queue: str = "mail") -> int:
    count: int = channel_of(connection).queue_declare(queue, passive=True).message_count
    return count


# ---------------------------------------------------------------------- the event loop


@pytest.fixture
def hub() -> t.Iterator[t.Any]:
    hub = Hub()
    yield hub
    hub.close()


def test_a_delivery_lets_the_event_loop_look_again_at_once(
    connect: t.Callable[..., Connection], hub: t.Any
) -> None:
    """What Celery's pool has been given, it writes to a child when the loop comes round."""
    connection, received = connect(), []
    queue = Queue("mail", channel=connection.default_channel)
    with Consumer(connection, [queue], callbacks=[lambda body, _: received.append(body)]):
        connection.transport.register_with_event_loop(connection.connection, hub)
        send(connection, 1)
        assert hub.poller.poll(0) in (None, [])
        (on_tick,) = hub.on_tick
        on_tick()
        assert received == [1]
        ((wakes, _),) = hub.poller.poll(0)
        next(hub.create_loop())
        assert hub.poller.poll(0) in (None, [])
        connection.transport.close_connection(connection.connection)
    assert hub.on_tick == set()
    assert wakes not in hub.readers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wakes)


def test_a_forked_child_leaves_the_event_loop_of_its_parent_alone(
    connect: t.Callable[..., Connection], hub: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    connection.transport.register_with_event_loop(connection.connection, hub)
    leave = t.cast(t.Any, connection.transport)._leave_loop
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        leave()
    assert len(hub.on_tick) == len(hub.readers) == 1
    leave()
    assert len(hub.on_tick) == len(hub.readers) == 0


# ------------------------------------------------------------------ messages and queues

NAMES = ["mail", "Mail", "mAil", "a.b", "a b", "a/b", "a%2fb", "..", ".", "", "../../x", "/etc/x"]
NAMES += ["ü", "\N{LEFTWARDS ARROW}", "a\nb", ".hidden", "*", "x" * 400, "x" * 399 + "y"]


@pytest.mark.parametrize("name", NAMES)
def test_any_queue_name_works_and_stays_in_the_folder(
    name: str, connect: t.Callable[..., Connection], tmp_path: pathlib.Path
) -> None:
    channel = channel_of(connect())
    others = [other for other in NAMES if other != name]
    assert folders.quoted(name).lower() not in {folders.quoted(other).lower() for other in others}
    message = channel.prepare_message("hello")
    channel.basic_publish(message, exchange="", routing_key=name)

    (file,) = tmp_path.rglob("*.msg")
    assert file.parent.parent == tmp_path / "instance" / "sequence_broker" / "messages"
    assert channel._size(name) == 1
    assert channel._get(name)["body"] == message["body"]
    channel.queue_delete(name)
    assert not file.parent.exists()


def test_messages_come_in_the_order_of_their_publication_by_the_wall_clock(
    connect: t.Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([9, 100, 100, 20])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    for body in (1, 3, 4):
        send(connect(), body)
    # as after a reboot: the clock since the start is small, the clock on the wall is not
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    send(connect(), 2)
    assert [receive(connect()) for _ in range(4)] == [1, 2, 3, 4]


def test_a_higher_priority_is_sooner_and_none_is_the_lowest(
    connect: t.Callable[..., Connection],
) -> None:
    for priority in (None, 3, 9, 0, 3):
        send(connect(), priority, priority=priority)
    assert [receive(connect()) for _ in range(5)] == [9, 3, 3, None, 0]


def test_a_message_given_back_keeps_its_place(connect: t.Callable[..., Connection]) -> None:
    consumer, other = connect(), connect()
    for body in (1, 2):
        send(other, body)
    assert channel_of(consumer).basic_get("mail").decode() == 1
    assert depth(other) == 1
    consumer.release()
    assert [receive(other), receive(other), receive(other)] == [1, 2, None]


def test_depth_purge_and_delete(connect: t.Callable[..., Connection]) -> None:
    connection = connect()
    channel = channel_of(connection)
    assert depth(connection) == 0
    for body in range(3):
        send(connection, body)
    send(connection, "other", queue="other")
    assert depth(connection) == 3
    assert channel.queue_delete("mail", if_empty=True) is None
    assert depth(connection) == 3
    assert channel.queue_purge("mail") == 3
    assert channel.queue_purge("nothing") == 0
    assert depth(connection) == 0
    assert receive(connection, "other") == "other"


def test_a_queue_is_deleted_with_its_bindings_by_another_process(
    connect: t.Callable[..., Connection],
) -> None:
    channel, other = channel_of(connect()), channel_of(connect())
    Queue("mail", Exchange("letters", "direct"), "letter")(channel).declare()
    assert channel.get_table("letters") == [("letter", "", "mail")]
    assert other.get_table("letters") == [("letter", "", "mail")]
    other.queue_delete("mail")
    assert channel_of(connect()).get_table("letters") == []


def test_unbinding_leaves_the_other_bindings(connect: t.Callable[..., Connection]) -> None:
    channel = channel_of(connect())
    exchange = Exchange("letters", "topic")
    for key in ("a.#", "b.*"):
        Queue("mail", exchange, key)(channel).declare()
    channel.queue_unbind("mail", "letters", "a.#")
    assert [key for key, _, _ in channel.get_table("letters")] == ["b.*"]
    assert [key for key, _, _ in channel_of(connect()).get_table("letters")] == ["b.*"]


def test_two_folders_in_one_process_do_not_mix(
    connect: t.Callable[..., Connection], tmp_path: pathlib.Path
) -> None:
    queue = Queue("mail", Exchange("letters", "direct"), "letter")
    for name in ("one", "two"):
        connection = connect(tmp_path / name)
        connection.Producer().publish(
            name, exchange="letters", routing_key="letter", declare=[queue]
        )
    assert receive(connect(tmp_path / "one")) == "one"
    assert receive(connect(tmp_path / "two")) == "two"
    assert len(list((tmp_path / "one" / "exchanges").rglob("*.json"))) == 1


def test_folders_and_files_are_for_this_user_only(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    old = os.umask(0)
    try:
        send(connect(), 1)
    finally:
        os.umask(old)
    modes = {path: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}
    assert {modes[path] for path in modes if path.is_dir()} == {0o700}
    assert {modes[path] for path in modes if path.is_file()} == {0o600}


def test_options_without_folders_name_the_cure() -> None:
    with pytest.raises(SetupError, match=r"data_folder_in.*embedded_config"):
        Connection("filesystem://", transport=TRANSPORT).connect()


def test_waiting_ends_after_the_timeout_and_gets_rarer(
    connect: t.Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    connection = connect()
    with (
        connection.Consumer(Queue("mail"), callbacks=[lambda body, message: message.ack()]),
        pytest.raises(TimeoutError),
    ):
        connection.drain_events(timeout=1)
    assert sum(pauses) == pytest.approx(1)
    assert pauses[:6] == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, 0.1])
    assert max(pauses) == transport.POLLING_SECONDS


def test_who_may_hold_no_more_comes_back_early_to_acknowledge(
    connect: t.Callable[..., Connection],
) -> None:
    connection = connect()
    held: list[t.Any] = []
    with connection.Consumer(
        Queue("mail"), callbacks=[lambda body, message: held.append(message)], prefetch_count=1
    ):
        for number in (1, 2):
            send(connection, number)
        connection.drain_events(timeout=60)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=60)
        assert time.monotonic() - start < 30
        held[0].ack()
        connection.drain_events(timeout=60)
    assert [message.decode() for message in held] == [1, 2]


# ------------------------------------------------------------------ what goes wrong

BAD = {
    "truncated": b'{"body": "aGVsbG8=", "prop',
    "empty": b"",
    "not JSON": b"hello",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "no properties": b'{"body": "", "headers": {}}',
    "no body": b'{"headers": {}, "properties": {"delivery_tag": "1",'
    b' "delivery_info": {"exchange": "", "routing_key": "mail"}}}',
    "a body that is not base64": b'{"body": "a", "headers": {}, "properties": {"delivery_tag": "1",'
    b' "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "mail"}}}',
    "an unknown tag": b'{"__type__": "x", "__value__": 1}',
    "very deep": b"[" * 100_000,
}


def bad_file(folder: pathlib.Path, what: str) -> pathlib.Path:
    path = folder / "messages" / "mail" / "0-bad.msg"
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "a directory":
        path.mkdir()
    elif what == "a link to itself":
        path.symlink_to(path)
    else:
        path.write_bytes(BAD[what])
    return path


@pytest.mark.parametrize("what", [*BAD, "a directory", "a link to itself"])
def test_an_unreadable_message_is_set_aside_with_one_line(
    what: str,
    connect: t.Callable[..., Connection],
    folder: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = connect()
    send(connection, "good")
    path = bad_file(folder, what)
    assert receive(connection) == "good"
    assert receive(connection) is None
    assert not os.path.lexists(path)
    assert os.path.lexists(folder / "unreadable" / "mail-0-bad.msg")
    (record,) = caplog.records
    assert record.name == "flask_sequence"
    assert "unreadable/mail-0-bad.msg" in record.getMessage()
    assert len(record.getMessage()) < 700


def test_a_message_with_wrong_permissions_is_set_aside(
    connect: t.Callable[..., Connection], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    send(connection, "good")
    bad_file(folder, "not JSON")
    read = folders.read_file

    def read_file(path: pathlib.Path) -> bytes:  # root reads everything
        if path.name == "0-bad.msg":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(transport, "read_file", read_file)
    assert receive(connection) == "good"
    assert (folder / "unreadable" / "mail-0-bad.msg").exists()


def test_a_process_that_is_short_of_files_sets_nothing_aside(
    connect: t.Callable[..., Connection], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    send(connection, "good")

    def read_file(path: pathlib.Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(transport, "read_file", read_file)
        with pytest.raises(OSError, match="Too many open files"):
            receive(connection)
    assert receive(connection) == "good"
    assert not (folder / "unreadable").exists()


def test_what_another_process_takes_or_sets_aside_first_is_passed_over(
    connect: t.Callable[..., Connection],
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = connect()
    send(connection, "taken")
    send(connection, "mine")
    bad_file(folder, "empty")
    read = folders.read_file
    raced = 0

    def read_file(path: pathlib.Path) -> bytes:
        nonlocal raced
        content = read(path)
        if raced < 2:
            raced += 1
            path.unlink()
        return content

    monkeypatch.setattr(transport, "read_file", read_file)
    assert receive(connection) == "mine"
    assert raced == 2
    assert not caplog.records


def test_a_full_disk_is_a_connection_error_and_leaves_nothing_behind(
    connect: t.Callable[..., Connection], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    send(connection, 1)

    def replace(*_: t.Any) -> t.NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", replace)
    with pytest.raises(connection.connection_errors, match="No space left"):
        send(connection, 2)
    assert len(os.listdir(folder / "messages" / "mail")) == 1


def test_the_folder_may_be_deleted_while_in_use(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    publisher, worker, asker = connect(), connect(), connect()
    direct = Queue("mail", Exchange("letters", "direct"), "letter")
    everyone = Exchange("everyone", "fanout")
    got: list[t.Any] = []

    def on_message(body: t.Any, message: t.Any) -> None:
        got.append(body)
        message.ack()

    def say(body: str) -> None:
        publisher.Producer().publish(
            body, exchange="letters", routing_key="letter", declare=[direct]
        )
        asker.Producer().publish(body + "!", exchange="everyone", declare=[everyone])
        for _ in range(2):
            worker.drain_events(timeout=5)

    queues = [direct, Queue("news", everyone)]
    with Consumer(channel_of(worker), queues, callbacks=[on_message]):
        say("before")
        shutil.rmtree(folder)
        with pytest.raises(TimeoutError):
            worker.drain_events(timeout=0.01)
        say("after")
        shutil.rmtree(folder)
        send(publisher, "at once")
        worker.drain_events(timeout=5)
    assert sorted(got) == ["after", "after!", "at once", "before", "before!"]


def test_no_moment_of_its_deletion_is_an_error(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    connection = connect()
    done = threading.Event()

    def delete() -> None:
        while not done.wait(0.005):
            shutil.rmtree(folder, ignore_errors=True)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for body in range(500):
            control_queue(f"worker{body}.pidbox")(channel_of(connection)).declare()
            broadcast(connection, body)
            receive(connection, f"worker{body}.pidbox")
            channel_of(connection).queue_delete(f"worker{body}.pidbox")
    finally:
        done.set()
        thread.join()
    send(connection, "at last")
    assert receive(connection) == "at last"


def test_files_that_were_never_finished_go_after_an_hour(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    connection = connect()
    send(connection, 1)
    queue = folder / "messages" / "mail"
    old, new = queue / ".old", queue / ".new"
    for file in (old, new):
        file.write_text('{"half')
    hour_ago = time.time() - folders.LITTER_SECONDS - 1
    os.utime(old, (hour_ago, hour_ago))
    assert depth(connection) == 1
    assert (old.exists(), new.exists()) == (False, True)


# ------------------------------------------------------------------ queues with one consumer


def control_queue(name: str = "worker.pidbox") -> Queue:
    return Queue(name, Exchange("all.pidbox", "fanout"), auto_delete=True, expires=10.0)


def broadcast(connection: Connection, body: t.Any) -> None:
    exchange = Exchange("all.pidbox", "fanout")
    connection.Producer().publish(body, exchange=exchange, declare=[exchange])


def test_a_control_message_for_a_dead_worker_does_not_reach_the_next_one(
    connect: t.Callable[..., Connection],
) -> None:
    killed, asker, next_one = connect(), connect(), connect()
    control_queue()(channel_of(killed)).declare()
    broadcast(asker, "shutdown")
    assert depth(asker, "worker.pidbox") == 1
    bound = control_queue()(channel_of(next_one))
    bound.declare()
    broadcast(asker, "ping")
    bound.declare()
    assert receive(next_one, "worker.pidbox") == "ping"


def test_a_queue_with_one_consumer_goes_with_it_unless_a_forked_child_closes_it(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    for in_child in (True, False):
        connection = connect()
        channel = channel_of(connection)
        with Consumer(channel, [control_queue()]):
            channel._pid = 0 if in_child else os.getpid()
        assert (folder / "messages" / "worker%2epidbox").exists() is in_child
        assert len(channel_of(connect()).get_table("all.pidbox")) == int(in_child)


def test_a_consumer_may_be_cancelled_after_the_connection_was_lost(
    connect: t.Callable[..., Connection],
) -> None:
    channel = channel_of(connect())
    consumer = Consumer(channel, [control_queue()])
    consumer.consume()
    (tag,) = channel._consumers
    channel.close()
    channel.basic_cancel(tag)
    consumer.cancel()
    assert not channel._consumers


def test_a_forked_child_gives_back_nothing_of_its_parent(
    connect: t.Callable[..., Connection],
) -> None:
    connection = connect()
    send(connection, 1)
    channel = channel_of(connection)
    assert channel.basic_get("mail") is not None
    channel._pid = 0
    channel.close()
    assert depth(connect()) == 0


def test_a_dead_consumer_is_forgotten_and_a_slow_one_comes_back(
    connect: t.Callable[..., Connection], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, asker = connect(), connect()
    control_queue()(channel_of(slow)).declare()
    broadcast(asker, 1)
    (binding,) = (folder / "exchanges").rglob("*.json")
    long_ago = time.time() - transport.DEAD_SECONDS - 1
    os.utime(binding, (long_ago, long_ago))
    broadcast(asker, 2)
    assert not binding.exists()
    assert not (folder / "messages" / "worker%2epidbox").exists()

    assert receive(slow, "worker.pidbox") is None
    broadcast(asker, 3)
    assert receive(slow, "worker.pidbox") == 3
    os.utime(binding, (long_ago, long_ago))
    later = time.monotonic() + transport.SIGN_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later)
        assert receive(slow, "worker.pidbox") is None
    assert binding.stat().st_mtime > long_ago + 1


def test_a_damaged_binding_is_set_aside(
    connect: t.Callable[..., Connection], folder: pathlib.Path
) -> None:
    control_queue()(channel_of(connect())).declare()
    (folder / "exchanges" / "all%2epidbox" / "x.json").write_text('{"bind')
    assert [queue for *_, queue in channel_of(connect()).get_table("all.pidbox")] == [
        "worker.pidbox"
    ]
    assert (folder / "unreadable" / "all%2epidbox-x.json").exists()


# ------------------------------------------------------------------ many processes

COMMON = """
import pathlib, sys, time
from kombu import Connection, Exchange, Queue
from flask_sequence.broker import embedded_config

config = embedded_config(pathlib.Path(sys.argv[1]))
connection = Connection(config["broker_url"], transport=config["broker_transport"],
                        transport_options=config["broker_transport_options"])
channel = connection.default_channel
"""

BINDER = """
print("ready", flush=True); sys.stdin.readline()
for i in range(50):
    Queue(f"{sys.argv[2]}-{i}", Exchange("news", "fanout"))(channel).declare()
"""

PUBLISHER = """
producer = connection.Producer()
print("ready", flush=True); sys.stdin.readline()
for i in range(2000):
    producer.publish([sys.argv[2], i, "x" * (i % 50) * 100], routing_key="numbers")
"""

CONSUMER = """
def take(body, message):
    print(body[0], body[1], flush=True)
    message.ack()

with connection.Consumer(Queue("numbers"), callbacks=[take]):
    print("ready", flush=True); sys.stdin.readline()
    try:
        while True:
            connection.drain_events(timeout=3)
    except TimeoutError:
        pass
"""


def run_together(folder: pathlib.Path, *scripts: str) -> list[str]:
    """Run the scripts as processes that start their work at once, and give what they print."""
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with contextlib.ExitStack() as stack:
        processes: list[t.Any] = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", COMMON + script, str(folder), str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environ,
                )
            )
            for number, script in enumerate(scripts)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(scripts)
    return printed


def test_two_publishers_and_two_consumers_lose_and_double_nothing(folder: pathlib.Path) -> None:
    printed = run_together(folder, PUBLISHER, PUBLISHER, CONSUMER, CONSUMER)
    assert all(output for output in printed[2:])
    received = [line for output in printed[2:] for line in output.splitlines()]
    assert len(received) == 4000
    assert set(received) == {f"{number} {i}" for number in (0, 1) for i in range(2000)}
    assert not (folder / "unreadable").exists()
    assert os.listdir(folder / "messages" / "numbers") == []


def test_processes_that_bind_at_the_same_time_are_all_bound(
    folder: pathlib.Path, connect: t.Callable[..., Connection]
) -> None:
    run_together(folder, BINDER, BINDER, BINDER)
    table = channel_of(connect()).get_table("news")
    assert {queue for *_, queue in table} == {f"{n}-{i}" for n in range(3) for i in range(50)}
