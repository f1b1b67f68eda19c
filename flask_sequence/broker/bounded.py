"""Calls that may hang, in a thread of their own, so that nobody waits for them long."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
import typing as t
import weakref

IDLE_SECONDS = 10.0
"""How long the thread waits for another call until it ends."""

ResultT = t.TypeVar("ResultT")


class BusyError(TimeoutError):
    """What was called before has not returned."""


class Bounded:
    """Makes one call at a time; who has asked for it waits until an agreed moment, and no longer.

    Timeouts of sockets do not bound a call: a name may not be resolved, a server may have many
    addresses, an answer may come byte by byte.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._since = 0.0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # The thread knows only the queue: it ends when nobody has this any longer.
        weakref.finalize(self, self._calls.put, None).atexit = False

    @property
    def seconds(self) -> float:
        """How long the call at hand has taken so far; 0: there is none."""
        return time.monotonic() - self._since if self._busy.locked() else 0.0

    def call(self, until: float, function: t.Callable[[], ResultT]) -> ResultT:
        """Call a function, in the context of who asks for it.

        :param until: The moment, by the monotonic clock.
        :param function: What to call. Once it is called it comes to its own end, however late.
        :return: What the function returns.
        :raises BusyError: If it has not been called by then: the call before has not returned.
        :raises TimeoutError: If it has not returned by then.
        """
        if not self._busy.acquire(timeout=max(until - time.monotonic(), 0.0)):
            raise BusyError("what was asked before has not been answered")
        self._since = time.monotonic()
        call = _Call(function, self._busy.release)
        if self._has_thread():
            self._calls.put(call)
        else:
            call.make()
        return t.cast(ResultT, call.result(until))

    def _has_thread(self) -> bool:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(
                target=_make_calls,
                args=(self._calls, weakref.ref(self)),
                name="flask-sequence-broker",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or the system has no more threads
                return False
            self._thread = thread
        return True

    def _end_if_idle(self) -> bool:
        if not self._busy.acquire(blocking=False):
            return False  # somebody is about to ask
        self._thread = None
        self._busy.release()
        return True


def _make_calls(
    calls: queue.SimpleQueue[_Call | None], whose: weakref.ReferenceType[Bounded]
) -> None:
    while True:
        try:
            call = calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            bounded = whose()
            if bounded is None or bounded._end_if_idle():
                return
            del bounded
        else:
            if call is None:
                return
            call.make()
            del call  # with what it holds


class _Call:
    def __init__(self, function: t.Callable[[], t.Any], release: t.Callable[[], None]) -> None:
        self._function = function
        self._context = contextvars.copy_context()
        self._release = release
        self._answer: queue.SimpleQueue[tuple[t.Any, BaseException | None]] = queue.SimpleQueue()

    def make(self) -> None:
        answer: tuple[t.Any, BaseException | None]
        try:
            answer = self._context.run(self._function), None
        except BaseException as error:
            answer = None, error
        self._release()
        self._answer.put(answer)

    def result(self, until: float) -> t.Any:
        try:
            value, error = self._answer.get(timeout=max(until - time.monotonic(), 0.0))
        except queue.Empty:
            raise TimeoutError("no answer in time") from None
        if error is None:
            return value
        try:
            raise error
        finally:
            error = None  # whose traceback holds this frame
