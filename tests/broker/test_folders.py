"""Folders and files that somebody deletes, or that stand in the way."""

from __future__ import annotations

import errno
import os
import pathlib
import typing as t

import pytest

from flask_sequence.broker import folders
from flask_sequence.errors import SetupError


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "messages").write_text("")
    with pytest.raises(FileExistsError):
        folders.make_folder(tmp_path / "messages")


def test_a_folder_whose_parent_goes_again_and_again_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[pathlib.Path] = []
    make = pathlib.Path.mkdir

    def mkdir(path: pathlib.Path, **kwargs: t.Any) -> None:
        if path.name == "mail":
            tries.append(path)
            raise FileNotFoundError(path)
        make(path, **kwargs)

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    with pytest.raises(FileNotFoundError):
        folders.make_folder(tmp_path / "mail")
    assert len(tries) == folders.TRIES


def test_a_file_whose_folder_goes_again_and_again_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def open_private(path: str, flags: int) -> int:
        tries.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(folders, "_open_private", open_private)
    with pytest.raises(FileNotFoundError):
        folders.write_file(tmp_path / "mail" / "1.msg", "text")
    assert len(tries) == folders.TRIES
    assert list((tmp_path / "mail").iterdir()) == []


def test_a_folder_that_takes_no_message_is_told_when_it_is_connected_to(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = folders.Folders(tmp_path / "messages", tmp_path / "messages", tmp_path / "exchanges")
    broker.make()
    assert list((tmp_path / "messages").iterdir()) == []

    def fail(number: int) -> None:
        def refuse(path: str, flags: int) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(folders, "_open_private", refuse)

    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        broker.make()
    fail(errno.EROFS)
    with pytest.raises(SetupError, match="messages: it cannot be written .Read-only file system"):
        broker.make()
