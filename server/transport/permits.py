"""A semaphore for calls that may be cancelled, with an order of waiters. Imports grpc and the watch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import grpc

from numba_adam.server.transport.watch import Watch

_LOOK_SECONDS = 0.25


class Permits:
    """Limits how many calls do something at a time.

    Calls that have sent a message wait in a queue: first in, first out. Calls that have not sent one wait on a stack:
    last in, first out, so that calls that stay silent do not delay new ones. Permits go to both in turn.

    Args:
        most: number of permits.
        watch: is told while a call waits.
        free: number of permits that reserve nothing. None: all.
        reserve: reserves the memory for one more permit; returns whether it could.
        give_back: gives that memory back.
    """

    def __init__(
        self,
        most: int,
        watch: Watch,
        free: int | None = None,
        reserve: Callable[[], bool] = lambda: True,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._most, self._free = most, most if free is None else free
        self._reserve, self._give_back = reserve, give_back
        self._watch = watch
        self._held = 0
        self._lock = threading.Lock()
        self._known: deque[threading.Event] = deque()
        self._new: deque[threading.Event] = deque()
        self._is_known_next = True

    def acquire(self, context: grpc.ServicerContext, *, is_new: bool = False) -> None:
        """Wait for a permit.

        Args:
            context: the call's.
            is_new: True: the call has not sent a message yet.

        Raises:
            Exception: gRPC's own, when the caller is gone.
        """
        waiters = self._new if is_new else self._known
        with self._lock:
            if not self._known and not self._new and self._try():
                return
            granted = threading.Event()
            waiters.append(granted)
        self._watch.report_pressure()
        while not granted.wait(_LOOK_SECONDS):
            self._watch.report_pressure()
            with self._lock:
                self._grant()  # memory may have become free
                if not granted.is_set() and not context.is_active():
                    waiters.remove(granted)
                    break
        if not granted.is_set():
            context.abort(grpc.StatusCode.CANCELLED, "the caller is gone")

    def try_acquire(self) -> bool:
        """Take a permit if there is one that nobody waits for; return whether it did."""
        with self._lock:
            return not self._known and not self._new and self._try()

    def release(self) -> None:
        """Give a permit back."""
        with self._lock:
            if self._held > self._free:
                self._give_back()
            self._held -= 1
            self._grant()

    def _grant(self) -> None:
        """Give permits to waiting calls while there are any."""
        while (self._known or self._new) and self._try():
            is_known = bool(self._known) and (self._is_known_next or not self._new)
            self._is_known_next = not is_known
            (self._known.popleft() if is_known else self._new.pop()).set()

    def _try(self) -> bool:
        if self._held < self._free or (self._held < self._most and self._reserve()):
            self._held += 1
            return True
        return False
