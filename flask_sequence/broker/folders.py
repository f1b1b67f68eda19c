"""Folders that many processes share: files appear whole, and are gone for who comes second."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import pathlib
import re
import shutil
import stat
import sys
import time
import typing as t
import uuid

from kombu.utils.json import dumps

from ..errors import SetupError

if sys.platform != "win32":
    import grp
    import pwd

LITTER_SECONDS = 3600.0
"""After how long a file that was never renamed into place belongs to a dead process."""
TRIAL_BYTES = 4096
"""The size of the file by which it is found out whether a folder takes messages."""
TRIES = 50
"""How often a folder is created that somebody is deleting at the same time."""
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
"""Failures to read that say something about this process, not about the file."""
_LASTING = {errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}
_LASTING |= {errno.EPERM, errno.EROFS}
"""Failures to create a folder that go away by what a person does only."""
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No symbolic link leads elsewhere, and a named pipe lets nobody wait; Windows has neither."""

logger: logging.Logger = logging.getLogger("flask_sequence")


class Binding(t.NamedTuple):
    """What leads a message from an exchange to a queue, in the order in which kombu reads it."""

    routing_key: str
    pattern: str
    queue: str


def quoted(name: str) -> str:
    """Give a file name for any name of a queue or an exchange, and a different one for each.

    Also where the file system does not tell capitals from small letters.

    :param name: The name, with whatever characters.
    :return: ASCII without dots and slashes, at most 150 characters.
    """
    text = re.sub(
        rb"[^a-z0-9_-]", lambda m: b"%%%02x" % m[0][0], name.encode("utf-8", "surrogatepass")
    ).decode()
    if len(text) > 150:
        return f"{text[:100]}~{hashlib.sha256(text.encode()).hexdigest()[:40]}"
    return text or "~"


@functools.lru_cache(maxsize=1000)
def _subfolder(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / quoted(name)


def make_folder(folder: pathlib.Path) -> None:
    """Create a folder and its parents, for this user only, if they are not there.

    :param folder: The folder.
    :raises OSError: It cannot be created.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            return folder.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            if not tries_left:
                raise
            make_folder(folder.parent)
        except FileExistsError:  # a file; or it was deleted just after it had been found
            if not tries_left:
                raise


def read_file(path: pathlib.Path) -> bytes:
    """Read a file that this user wrote, and nothing else that may stand in its place.

    :param path: The file.
    :raises OSError: It cannot be read; it is a symbolic link, for one.
    :raises ValueError: It is no file, or another user's.
    """
    with open(os.open(path, os.O_RDONLY | _NOT_FOLLOWED), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if not _is_ours(found):
            raise ValueError(f"it was written by {_user(found)}")
        return file.readall()


def write_file(path: pathlib.Path, text: str) -> None:
    """Write a file that nobody sees half-written: under a hidden name, then renamed into place.

    :param path: Where to; its folder is created if it is not there, or no longer.
    :param text: The content.
    :raises OSError: The disk is full or the folder cannot be written.
    """
    hidden = path.with_name(f".{uuid.uuid4().hex}")
    for tries_left in reversed(range(TRIES)):
        try:
            with open(hidden, "x", encoding="utf-8", opener=_open_private) as file:
                file.write(text)
            hidden.replace(path)
        except FileNotFoundError:
            if not tries_left:
                raise
            make_folder(path.parent)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise
        else:
            return


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _refused_for_good(folder: pathlib.Path, what: str) -> t.Iterator[None]:
    """Refuse a folder that will never do; what may pass is raised as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LASTING:
            raise
        problem = f"it cannot be {what} ({error.strerror})"
        raise _refusal(folder, problem, "let this user write there") from error


def check_writable(folder: pathlib.Path) -> None:
    """Find out whether a folder takes a file of the size of a message.

    :param folder: The folder, which is there.
    :raises OSError: It does not.
    """
    file = folder / f".{uuid.uuid4().hex}"
    try:
        with open(file, "x", encoding="utf-8", opener=_open_private) as opened:
            opened.write("-" * TRIAL_BYTES)
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def check_private(folder: pathlib.Path) -> None:
    """Refuse a folder in which others can put messages: whoever can, has them performed.

    :param folder: The folder, which is there.
    :raises SetupError: It is no folder, another user's, or can be written or replaced by others.
    """
    place = folder.resolve()
    found = place.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal(folder, "it is not a folder", "move it away")
    if sys.platform == "win32":
        return
    if not _is_ours(found):
        cure = f"run as that user, or move {place} away"
        raise _refusal(folder, f"it belongs to {_user(found)}, who could have tasks run here", cure)
    writers = "others may put messages there, and would have tasks run as this user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refusal(folder, writers, f"run 'chmod go-w {place}'")
    for parent in dict.fromkeys((*folder.absolute().parents, *place.parents)):
        if _is_shared(parent.stat()):
            problem = f"others may replace what is in {parent}, and would have tasks run here"
            raise _refusal(folder, problem, f"run 'chmod go-w {parent}'")


def _refusal(folder: pathlib.Path, problem: str, cure: str) -> SetupError:
    return SetupError(
        f"The embedded broker does not use {folder}: {problem}. Please {cure}, or keep the messages"
        ' elsewhere: app.config["CELERY"] = flask_sequence.broker.embedded_config(folder).'
    )


def _is_ours(found: os.stat_result) -> bool:
    return sys.platform == "win32" or found.st_uid == os.geteuid()


def _is_shared(found: os.stat_result) -> bool:
    """Tell whether others may rename what is in a folder, as nobody may with its sticky bit."""
    if found.st_mode & stat.S_ISVTX:
        return False
    by_group = found.st_mode & stat.S_IWGRP and not _is_alone_in(found.st_gid)
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _user(found: os.stat_result) -> str:
    try:
        return f"the user {pwd.getpwuid(found.st_uid).pw_name}"
    except KeyError:
        return f"the user {found.st_uid}"


def _is_alone_in(group: int) -> bool:
    """Tell whether a group is this user's own, as many systems make one for each user."""
    try:
        me, members = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    users = [user.pw_name for user in pwd.getpwall() if user.pw_gid == group]
    return {*members, *users} == {me}


def names_in(folder: pathlib.Path) -> list[str]:
    """List a folder; one that was deleted is empty."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def are_messages(names: list[str]) -> list[str]:
    """Keep of the names in a queue's folder those of messages."""
    return [name for name in names if name.endswith(".msg") and name[0] != "."]


def remove_litter(folder: pathlib.Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for name in names_in(folder):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            file = folder / name
            if name[0] == "." and time.time() - file.lstat().st_mtime > LITTER_SECONDS:
                file.unlink()


class Folders:
    """Where a broker keeps its messages, and what leads them to their queues.

    :param incoming: The folder of the folders in which messages are read.
    :param outgoing: The same for writing; as a rule it is the same folder.
    :param control: The folder of the bindings.
    """

    def __init__(
        self, incoming: pathlib.Path, outgoing: pathlib.Path, control: pathlib.Path
    ) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.control = control
        self.unreadable: pathlib.Path = incoming.parent / "unreadable"

    def make(self) -> None:
        """Create them, so that a wrong path is reported at once, and keep them to this user.

        :raises SetupError: They cannot be created or written, or others can write into them.
        :raises OSError: They cannot be created or written now: the disk is full, for one.
        """
        for folder in dict.fromkeys((self.incoming, self.outgoing, self.control)):
            with _refused_for_good(folder, "created"):
                make_folder(folder)
            check_private(folder)
        for folder in dict.fromkeys((self.incoming, self.outgoing)):
            with _refused_for_good(folder, "written"):
                check_writable(folder)

    def queue(self, queue: str, incoming: bool = False) -> pathlib.Path:
        """Give the folder that holds the messages of a queue.

        :param queue: The name of the queue.
        :param incoming: Where to read, otherwise where to write; as a rule the same.
        """
        return _subfolder(self.incoming if incoming else self.outgoing, queue)

    def exchange(self, exchange: str) -> pathlib.Path:
        """Give the folder that holds the bindings of an exchange.

        :param exchange: The name of the exchange.
        """
        return _subfolder(self.control, exchange)

    def binding_file(self, exchange: str, binding: Binding) -> pathlib.Path:
        """Give the file of one binding: none is ever rewritten, so none is lost without a lock.

        :param exchange: The name of the exchange.
        :param binding: The binding.
        """
        key = hashlib.sha256(dumps(binding).encode()).hexdigest()[:32]
        return self.exchange(exchange) / f"{quoted(binding.queue)}.{key}.json"

    def forget(self, queue: str) -> None:
        """Delete a queue with its messages and all bindings that lead to it.

        :param queue: The name of the queue.
        """
        for exchange in names_in(self.control):
            for name in names_in(self.control / exchange):
                if name.startswith(f"{quoted(queue)}."):
                    (self.control / exchange / name).unlink(missing_ok=True)
        shutil.rmtree(self.queue(queue, incoming=True), ignore_errors=True)

    def set_aside(self, path: pathlib.Path, error: Exception) -> None:
        """Put a file where nobody reads it again, and say so.

        :param path: The file.
        :param error: What came of reading it; raised again if it tells of this process only.
        """
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise error
        target = self.unreadable / f"{path.parent.name}-{path.name}"
        make_folder(target.parent)
        check_private(target.parent)
        if os.path.lexists(target):
            target = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
        try:
            path.replace(target)
        except FileNotFoundError:
            return
        logger.error(
            "A message could not be read (%s: %s) and was set aside as %s. If it was a nudge, the"
            " sweep publishes it again; the file can be deleted.",
            type(error).__name__,
            str(error)[:200],
            target,
        )
