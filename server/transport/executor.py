"""The threads of calls. Few calls start at a time; the others wait without a thread.

Python runs one thread at a time. Sixty threads that compete for that turn spend more time on the competition than on
their calls. So a call needs a slot to start, and a thread that ends its call starts the next one, without a switch of
threads. A call that may wait for its peer, for a disk or for memory frees its slot before. Imports the standard
library.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

SLOTS = 3
"""Number of calls that start at a time: one runs Python, others run kernels, system calls and gRPC's C code."""

_PATIENCE_SECONDS = 0.05
_WITHOUT_LIMIT_SECONDS = 1.0


class CallExecutor(ThreadPoolExecutor):
    """A thread pool that starts few calls at a time.

    If calls wait and a slot's call waits for its first message for `patience_seconds`, or no call could start for as
    long, then all start at once, as in a usual pool, for the next second. So slow and silent peers delay nobody.

    Args:
        most_threads: number of threads.
        name: part of the threads' names.
        initializer: runs first on each thread.
        slots: number of calls that may hold a slot.
        patience_seconds: how long calls wait for others that do not progress.
    """

    def __init__(
        self,
        most_threads: int,
        name: str,
        initializer: Callable[[], None] | None = None,
        slots: int = SLOTS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        super().__init__(most_threads, name, initializer)
        self._free, self._patience_seconds = slots, patience_seconds
        self._waiting: deque[Callable[[], None]] = deque()
        self._started = 0  # of the calls that had to wait
        self._without_limit_until = -float("inf")
        self._slots_lock = threading.Lock()
        self._has_waiting, self._is_over = threading.Event(), threading.Event()
        self._peers: dict[int, float] = {}  # threads that have a slot and wait for their peer, and since when
        self._own = threading.local()
        self._watcher = threading.Thread(target=self._watch, name=f"{name}-slots", daemon=True)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function on a thread, as soon as a slot is free."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._slots_lock:
            has_slot = self._free > 0
            if has_slot:
                self._free -= 1
            elif time.monotonic() >= self._without_limit_until and not self._is_over.is_set():
                self._waiting.append(run)
                if len(self._waiting) == 1:
                    self._has_waiting.set()
                    if self._watcher.ident is None:
                        self._watcher.start()
                return future
        super().submit(self._work, run, has_slot=has_slot)
        return future

    def free_slot(self) -> None:
        """Free the slot of the calling thread, if it has one: the call may wait from now on."""
        if getattr(self._own, "has_slot", False):
            self._own.has_slot = False
            run = self._next()
            if run is not None:
                super().submit(self._work, run, has_slot=True)

    @contextlib.contextmanager
    def waiting_for_peer(self) -> Iterator[None]:
        """Say that the calling thread waits for its call's peer during the body."""
        if not getattr(self._own, "has_slot", False):
            yield
            return
        thread = threading.get_ident()
        self._peers[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._peers[thread]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Start the calls that wait, and end the threads after their calls."""
        with self._slots_lock:
            self._is_over.set()
        self._has_waiting.set()
        self._start_all()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _work(self, run: Callable[[], None] | None, *, has_slot: bool) -> None:
        """Run a call, and the next ones as long as this thread keeps its slot."""
        self._own.has_slot = has_slot
        while run is not None:
            run()
            run = self._next() if self._own.has_slot else None

    def _next(self) -> Callable[[], None] | None:
        """Return the next call for a slot; None if no call waits, and the slot is free then."""
        with self._slots_lock:
            if self._waiting:
                self._started += 1
                return self._waiting.popleft()
            self._free += 1
            return None

    def _watch(self) -> None:
        """Start all calls when they wait for peers of other calls."""
        while not self._is_over.is_set():
            self._has_waiting.wait()
            with self._slots_lock:
                before = self._started
                if not self._waiting:
                    self._has_waiting.clear()
                    continue
            if self._is_over.wait(self._patience_seconds):
                return
            now = time.monotonic()
            is_late = any(now - since > self._patience_seconds for since in list(self._peers.values()))
            if is_late or self._started == before:
                self._without_limit_until = now + _WITHOUT_LIMIT_SECONDS
                self._start_all()

    def _start_all(self) -> None:
        with self._slots_lock:
            while self._waiting:
                super().submit(self._work, self._waiting.popleft(), has_slot=False)
