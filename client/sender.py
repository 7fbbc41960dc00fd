"""The thread behind push_async: jobs in order, one at a time, a bounded number waiting. May import nothing but ours."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from numba_adam.client.retry import closed

_T = TypeVar("_T")


class Sender:
    """Runs jobs in the order in which they were given."""

    def __init__(self, name: str, waiting: int) -> None:
        self._name = name
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(waiting)
        self._open = True
        self._submit_lock = threading.Lock()  # keeps the order of jobs that several threads submit, and the end last
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"numba-adam push {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], _T]) -> Future[_T]:
        """Queue a job; waits while the queue is full.

        Raises:
            ServiceError: the sender was closed.
        """
        future: Future[_T] = Future()
        with self._submit_lock:
            if not self._open:
                raise closed(self._name)
            self._jobs.put((job, future))
        return future

    def is_current_thread(self) -> bool:
        """Say whether the caller is a job, or what a job calls."""
        return threading.current_thread() is self._thread

    def close(self, patience_seconds: float) -> None:
        """Take no more jobs; wait so long for those that were given, then cancel those that have not begun."""
        if patience_seconds <= 0:
            self._abandoned.set()  # first: a submit that waits for room gets it from jobs that are skipped
        with self._submit_lock:
            was_open, self._open = self._open, False
            if was_open:
                self._jobs.put(None)
        if not self.is_current_thread():
            self._thread.join(max(patience_seconds, 0.0))
        self._abandoned.set()

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, future = entry
            if self._abandoned.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # the caller learns of it from the future
                future.set_exception(error)
