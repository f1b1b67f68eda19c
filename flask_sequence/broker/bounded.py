"""Calls that may hang, in a thread of their own, so that nobody waits for them long."""

from __future__ import annotations

import contextvars
import threading
import time
import typing as t

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
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(call.make,), name="flask-sequence-broker", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or the system has no more threads
            call.make()
        return t.cast(ResultT, call.result(until))


class _Call:
    def __init__(self, function: t.Callable[[], t.Any], release: t.Callable[[], None]) -> None:
        self._function = function
        self._release = release
        self._ended = threading.Event()
        self._value: t.Any = None
        self._error: BaseException | None = None

    def make(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            self._release()
            self._ended.set()

    def result(self, until: float) -> t.Any:
        if not self._ended.wait(max(until - time.monotonic(), 0.0)):
            raise TimeoutError("no answer in time")
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            self._error = None  # whose traceback holds this frame
