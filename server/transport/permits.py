"""How many calls may do something at a time, and in which order those wait that must. Imports grpc and the watch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import grpc

from numba_adam.server.transport.watch import Watch

_LOOK_SECONDS = 0.25


class Permits:
    """Bounds how many calls do something at a time.

    Calls that have shown what they want wait in the order in which they came. Of those that have not, the newest is
    first: who opens calls and says nothing is soon older than whoever has something to say. Both have turns.

    Args:
        most: how many permits there are.
        watch: is told while somebody waits.
        free: so many of them cost nothing. None: all.
        take: takes what a further one costs, if it is there.
        give_back: gives that back.
    """

    def __init__(
        self,
        most: int,
        watch: Watch,
        free: int | None = None,
        take: Callable[[], bool] = lambda: True,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._most, self._free = most, most if free is None else free
        self._take, self._give_back = take, give_back
        self._watch = watch
        self._held = 0
        self._lock = threading.Lock()
        self._known: deque[threading.Event] = deque()
        self._new: deque[threading.Event] = deque()
        self._is_known_next = True

    def acquire(self, context: grpc.ServicerContext, *, is_new: bool = False) -> None:
        """Wait for a permit.

        Args:
            context: of the call that wants it.
            is_new: whether the call has not sent a message yet.

        Raises:
            Exception: gRPC's own, when the caller is gone.
        """
        waiters = self._new if is_new else self._known
        with self._lock:
            if not self._known and not self._new and self._try():
                return
            granted = threading.Event()
            waiters.append(granted)
        self._watch.press()
        while not granted.wait(_LOOK_SECONDS):
            self._watch.press()
            with self._lock:
                self._grant()  # what a permit costs may have become free
                if not granted.is_set() and not context.is_active():
                    waiters.remove(granted)
                    break
        if not granted.is_set():
            context.abort(grpc.StatusCode.CANCELLED, "the caller is gone")

    def release(self) -> None:
        """Give a permit back."""
        with self._lock:
            if self._held > self._free:
                self._give_back()
            self._held -= 1
            self._grant()

    def _grant(self) -> None:
        """Give permits to those who wait, as long as there are any."""
        while (self._known or self._new) and self._try():
            is_known = bool(self._known) and (self._is_known_next or not self._new)
            self._is_known_next = not is_known
            (self._known.popleft() if is_known else self._new.pop()).set()

    def _try(self) -> bool:
        if self._held < self._free or (self._held < self._most and self._take()):
            self._held += 1
            return True
        return False
