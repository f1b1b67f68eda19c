"""Nudges that come again while their Celery worker has them in hand."""

from __future__ import annotations

import typing as t
import weakref

from celery import Celery
from celery.worker import request, state

from ..broker.line import MORE
from .task import runtime_for


class _NudgeRequest(request.Request):
    """Celery's request, which is done at once while its worker has the same nudge in hand.

    Brokers deliver again, and the sweep sends again what it misses. Nothing can be lost with a
    repeated nudge: its run is swept when the first one comes to nothing.
    """

    def revoked(self) -> bool:
        """Tell whether there is nothing to perform; asked when a slot is free."""
        if super().revoked():
            return True
        first = _in_hand.setdefault(self._key, self)
        if first is self:
            return self._begin()
        if first not in state.reserved_requests:
            _in_hand[self._key] = self
            return self._begin()
        state.task_ready(self)
        state.requests[first.id] = first  # where both have one id: for Celery's control commands
        self.acknowledge()
        self._already_revoked = True
        return True

    def _begin(self) -> bool:
        # Celery's first message protocol has its own headers in the body.
        if self.request_dict.get(MORE) or (self.message.headers or {}).get(MORE):
            runtime = runtime_for(t.cast("Celery", self.app))
            if runtime is not None and runtime.worker is not None:
                runtime.worker.more_due = True
        return False

    @property
    def _key(self) -> t.Hashable:
        # A nudge that came too early, or by another way than its step has now, is sent again on
        # purpose: that one has another time, or counts as a retry.
        header, body = self.request_dict, self.body
        # Under Celery's first message protocol it is decoded already.
        key = repr(body) if isinstance(body, (list, tuple)) else body
        return key, header.get("eta"), header.get("retries")


_in_hand: weakref.WeakValueDictionary[t.Hashable, _NudgeRequest] = weakref.WeakValueDictionary()
