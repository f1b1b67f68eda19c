"""Processes of this host: where their numbers mean the same, and whether one lives."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib


@functools.cache
def here() -> str | None:
    """Name the place whose process numbers this process can judge; None: it cannot.

    Containers may share the name of a host, and have numbers of their own. So it is the boot of
    the machine and the kernel's namespace of processes that count.
    """
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def is_alive(pid: int) -> bool:
    """Tell whether a process of this place lives; one of the same number counts as the same.

    :param pid: Its number.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
