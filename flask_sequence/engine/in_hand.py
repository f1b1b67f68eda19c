"""What the processes of a worker have in hand: a claim that none of them knows is taken back."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import typing as t

if t.TYPE_CHECKING:
    from ..runtime import Runtime

SLOTS = 1024
"""How many children can tell what they perform; of others nothing is known."""

_SLOT = struct.Struct("qq")


class InHand:
    """The runs that the processes of one worker perform.

    A child of the pool performs one run at a time, and writes its process id and that run into a
    slot of memory that it shares with the main process. A process that performs many, the main one
    of the other pools, knows them by itself.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, SLOTS * _SLOT.size)
        self._slot: int | None = None
        # Many threads change it, each its own entry.
        self._mine: dict[object, int] = {}

    def be_child(self, number: int | None) -> None:
        """Belong to a child from now on.

        :param number: Which of its pool's children it is; None: not known.
        """
        self._mine = {}
        self._slot = number if number is not None and number < SLOTS else None
        self._tell()

    def take(self, run_id: int) -> object:
        """Note that this process is about to claim a run.

        :return: What lets go of it.
        """
        hand = object()
        self._mine[hand] = run_id
        self._tell()
        return hand

    def let_go(self, hand: object) -> None:
        """Note that it has nothing more to do with a run.

        :param hand: What took it.
        """
        del self._mine[hand]
        self._tell()

    def is_without_hand(self, pid: int, run_id: int) -> bool:
        """Tell whether a process is known not to perform a run.

        :param pid: The process, which lives.
        :param run_id: The run.
        """
        if pid == os.getpid():
            return run_id not in list(self._mine.values())
        return any(
            run_id != performed
            for owner, performed in _SLOT.iter_unpack(self._shared[:])
            if owner == pid
        )

    def _tell(self) -> None:
        if self._slot is not None:
            # The last one: a step may perform another run in place.
            run_id = next(reversed(self._mine.values()), 0)
            _SLOT.pack_into(self._shared, self._slot * _SLOT.size, os.getpid(), run_id)


@contextlib.contextmanager
def in_hand(runtime: Runtime, run_id: int) -> t.Iterator[None]:
    """Have a run in hand, where this process is one of a worker.

    :param runtime: The application's runtime.
    :param run_id: The run.
    """
    if runtime.worker is None:
        yield
        return
    hands = runtime.worker.in_hand
    hand = hands.take(run_id)
    try:
        yield
    finally:
        hands.let_go(hand)
