"""The embedded broker takes messages from its own user only, as ssh does with its keys."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pathlib
import pwd
import socket
import typing as t

import pytest
from flask import Flask
from kombu import Connection

from flask_sequence.broker import folders
from flask_sequence.broker.embedded import check_folders, embedded_config, make_celery
from flask_sequence.errors import SetupError
from tests.broker.test_transport import channel_of, depth, receive, send
from tests.conftest import create_tables
from tests.support.application import db
from tests.support.starts import TwoSteps
from tests.support.workers import Worker, write_module

if t.TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 54321
"""The number of a user who is not there."""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a broker, which is there, with a message's queue."""
    folder = tmp_path / "shared" / "broker"
    for name in ("messages/mail", "exchanges"):
        (folder / name).mkdir(mode=0o700, parents=True)
    return folder


@pytest.fixture
def connection(folder: pathlib.Path) -> t.Iterator[Connection]:
    config = embedded_config(folder)
    connection = Connection(
        config["broker_url"],
        transport=config["broker_transport"],
        transport_options=config["broker_transport_options"],
    )
    yield connection
    connection.release()


def refused(folder: pathlib.Path) -> str:
    """Give what the application and its worker say of the folder."""
    celery = make_celery(Flask("shop", instance_path=str(folder.parent / "instance")))
    celery.conf.update(embedded_config(folder))
    with pytest.raises(SetupError) as caught:
        check_folders(celery)
    with pytest.raises(SetupError), celery.connection_for_write() as connection:
        connection.connect()
    return str(caught.value)


def test_a_folder_of_ones_own_is_taken(connection: Connection, folder: pathlib.Path) -> None:
    send(connection, "hello")
    assert receive(connection) == "hello"
    folders.check_private(folder)


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o702, 0o777])
@pytest.mark.parametrize("name", ["messages", "exchanges"])
def test_a_folder_into_which_others_may_write(folder: pathlib.Path, name: str, mode: int) -> None:
    (folder / name).chmod(mode)
    told = refused(folder)
    assert "others may put messages there" in told
    assert f"chmod go-w {folder / name}" in told


def test_a_folder_of_another_user(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    me = pwd.getpwuid(os.getuid()).pw_name
    assert f"it belongs to the user {me}" in refused(folder)


def test_a_user_without_a_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> t.NoReturn:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(SetupError, match=f"belongs to the user {os.getuid()}"):
        folders.check_private(tmp_path)


def make_fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def make_socket(path: pathlib.Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the paths of sockets are short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(path.name)
    os.fchdir(here)
    os.close(here)


def make_file(path: pathlib.Path) -> None:
    path.write_text("")


def make_loose_link(path: pathlib.Path) -> None:
    path.symlink_to(path.parent / "nothing")


def make_link_to_itself(path: pathlib.Path) -> None:
    path.symlink_to(path)


def make_link_to_a_file(path: pathlib.Path) -> None:
    (path.parent / "file").write_text("{}")
    path.symlink_to(path.parent / "file")


NO_FOLDER = (make_fifo, make_socket, make_file, make_loose_link, make_link_to_itself)


@pytest.mark.parametrize("make", NO_FOLDER)
def test_what_is_no_folder(tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    (tmp_path / "broker").mkdir()
    make(tmp_path / "broker" / "messages")
    told = refused(tmp_path / "broker")
    assert "cannot be created (File exists)" in told or "symbolic links" in told
    (tmp_path / "plain").write_text("")
    with pytest.raises(SetupError, match="is not a folder"):
        folders.check_private(tmp_path / "plain")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_what_others_may_replace(
    folder: pathlib.Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_is_alone_in", lambda group: False)
    folder.parent.chmod(mode)
    if mode & 0o1000:
        return folders.check_private(folder / "messages")
    told = refused(folder)
    assert f"others may replace what is in {folder.parent}" in told
    assert "embedded_config(folder)" in told


def test_a_group_of_ones_own_has_no_others(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.chmod(0o775)
    me = pwd.getpwuid(os.geteuid())

    def told(others: list[str]) -> t.Any:
        return lambda group: grp.struct_group(("shop", "x", group, others))

    monkeypatch.setattr(pwd, "getpwall", lambda: [me])
    monkeypatch.setattr(grp, "getgrgid", told([]))
    os.chown(folder.parent, -1, me.pw_gid)
    folders.check_private(folder / "messages")
    monkeypatch.setattr(grp, "getgrgid", told([me.pw_name, "somebody"]))
    assert "others may replace" in refused(folder)
    other = pwd.struct_passwd(("other", "x", STRANGER, me.pw_gid, "", "", ""))
    monkeypatch.setattr(grp, "getgrgid", told([]))
    monkeypatch.setattr(pwd, "getpwall", lambda: [me, other])
    assert "others may replace" in refused(folder)


def test_a_link_that_others_may_replace(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(folder)
    (tmp_path / "open").chmod(0o777)
    folders.check_private(folder)
    assert f"others may replace what is in {tmp_path / 'open'}" in refused(
        tmp_path / "open" / "link"
    )


def test_a_link_of_ones_own_is_followed(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    folders.check_private(tmp_path / "link")
    folder.parent.chmod(0o777)
    assert f"others may replace what is in {folder.parent}" in refused(tmp_path / "link")


def test_a_folder_that_cannot_be_created(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be created (Not a directory)" in refused(tmp_path / "file" / "broker")

    def full(folder: pathlib.Path) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    # That passes: it is waited for, as for a broker that is down.
    monkeypatch.setattr(folders, "make_folder", full)
    celery = make_celery(Flask("shop", instance_path=str(tmp_path)))
    celery.conf.update(embedded_config(tmp_path))
    check_folders(celery)
    with pytest.raises(OSError, match="No space"), celery.connection_for_write() as connection:
        connection.connect()


def test_another_broker_is_not_looked_at() -> None:
    celery = make_celery(Flask("shop"))
    celery.conf.update(broker_transport=None, broker_url="redis://example.invalid")
    check_folders(celery)


# What stands in the place of a message


def make_link_to_a_message(path: pathlib.Path) -> None:
    message = path.with_name("elsewhere")
    message.write_bytes(next(path.parent.glob("*.msg")).read_bytes())
    path.symlink_to(message)


def make_folder(path: pathlib.Path) -> None:
    (path / "inside").mkdir(parents=True)


ODD = (make_fifo, make_socket, make_loose_link, make_link_to_a_message, make_folder)


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_message_is_set_aside(
    connection: Connection,
    folder: pathlib.Path,
    make: Callable[[pathlib.Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(2):  # twice by the same name
        send(connection, number)
        make(folder / "messages" / "mail" / "0-odd.msg")
        assert depth(connection) == 2
        assert receive(connection) == number
        assert receive(connection) is None
        (folder / "messages" / "mail" / "elsewhere").unlink(missing_ok=True)
    assert len(os.listdir(folder / "unreadable")) == 2
    assert os.listdir(folder / "messages" / "mail") == []
    assert caplog.text.count("could not be read") == 2


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_loose_link, make_folder])
def test_what_is_no_binding_is_set_aside(
    connection: Connection, folder: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
    (folder / "exchanges" / "fan").mkdir()
    make(folder / "exchanges" / "fan" / "odd.json")
    assert channel_of(connection).get_table("fan") == []
    assert len(os.listdir(folder / "unreadable")) == 1


def test_a_message_of_another_user_is_set_aside(
    connection: Connection,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As it may stand there when a folder was replaced behind the running worker's back."""
    send(connection, "hello")
    monkeypatch.setattr(folders, "check_private", lambda folder: None)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert receive(connection) is None
    assert len(os.listdir(folder / "unreadable")) == 1
    assert "it was written by the user" in caplog.text


@pytest.mark.parametrize("make", ODD[:-1])
def test_a_queue_is_emptied_of_whatever_stands_there(
    connection: Connection, folder: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
    send(connection, 1)
    make(folder / "messages" / "mail" / "0-odd.msg")
    make_folder(folder / "messages" / "mail" / "1-odd.msg")
    assert channel_of(connection).queue_purge("mail") == 2
    assert os.listdir(folder / "messages" / "mail")[:1] == ["1-odd.msg"]


# A worker, and a request


APPLICATION = """
    import pathlib
    import flask_sequence
    from flask_sequence.broker import embedded_config
    from tests.support.application import create_app

    folder = pathlib.Path(__file__).parent / "shared" / "broker"
    app = create_app("sqlite:///{database}", embedded_config(folder))
    celery_app = flask_sequence.celery_app(app)
"""


@pytest.mark.parametrize("celery", [False, True])
def test_a_worker_ends_with_one_sentence(
    tmp_path: pathlib.Path, folder: pathlib.Path, celery: bool
) -> None:
    (folder / "messages").chmod(0o777)
    source = APPLICATION.format(database=tmp_path / "app.sqlite")
    create_tables(f"sqlite:///{tmp_path / 'app.sqlite'}")
    with Worker(tmp_path, write_module(tmp_path, source), celery=celery).launch() as worker:
        assert worker.wait(30) == 1
        assert "Error: The embedded broker does not use" in worker.log
        assert f"chmod go-w {folder / 'messages'}" in worker.log
        assert "Traceback" not in worker.log


def test_a_request_goes_on_and_logs_the_sentence(
    make_app: Callable[..., Flask],
    sqlite_url: str,
    folder: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "flask_sequence")
    (folder / "messages").chmod(0o777)
    app = make_app(sqlite_url, embedded_config(folder))
    for _ in range(2):
        with app.app_context():
            TwoSteps.start()
            db.session.commit()
    (record,) = caplog.records
    assert f"chmod go-w {folder / 'messages'}" in record.getMessage()
    assert list(folder.rglob("*.msg")) == []
