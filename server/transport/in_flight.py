"""Counts the calls in flight. A server that stops waits for them; gRPC's own stop waits for idle connections too.

A call counts from its request until its end. A call that has sent no request yet does not delay a stop.
Imports grpc's names.
"""

from __future__ import annotations

import threading
import time

import grpc

_QUIET_SECONDS = 0.05


class InFlight:
    """The calls in flight."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def begin(self, context: grpc.ServicerContext) -> None:
        """Count a call until its answer is sent or its caller disconnects."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()
        if not context.add_callback(self._end):  # it is over already
            self._end()

    @property
    def count(self) -> int:
        """Number of calls in flight."""
        return self._count

    def wait_until_none(self, timeout_seconds: float) -> bool:
        """Wait until no call is in flight; return False when the timeout comes first.

        A request may have arrived without reaching its thread, so the count must stay zero for a moment.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while self._changed.wait_for(lambda: not self._count, max(0.0, deadline - time.monotonic())):
                if not self._changed.wait_for(lambda: self._count, _QUIET_SECONDS):
                    return True
        return False

    def _end(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
