"""The thread behind push_async: jobs in order, one at a time, a bounded number waiting. May import nothing but ours."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from numba_adam.client.retry import Deadline, closed, queued_too_long

_T = TypeVar("_T")


class Sender:
    """Runs jobs in the order in which they were given."""

    def __init__(self, name: str, waiting: int) -> None:
        self._name, self._waiting = name, waiting
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_open = True
        self._changed = threading.Condition()  # guards the two above
        self._thread = threading.Thread(target=self._run, name=f"numba-adam push {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], _T], deadline: Deadline | None = None) -> Future[_T]:
        """Queue a job; waits while the queue is full.

        Only a job itself, or what it calls, never waits: nobody else could make room.

        Raises:
            DeadlineExceededError: there was no room in time.
            ServiceError: the sender was closed.
        """
        future: Future[_T] = Future()
        seconds = None if deadline is None else deadline.remaining_seconds()
        with self._changed:
            is_settled = self._changed.wait_for(lambda: self._has_room() or not self._is_open, seconds)
            if not self._is_open:
                raise closed(self._name)
            if deadline is not None and not is_settled:
                raise queued_too_long(self._name, deadline)
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future

    def run(self, job: Callable[[], _T], deadline: Deadline) -> _T:
        """Queue a job and return what it returns; one whose turn does not come in time is never begun.

        Raises:
            DeadlineExceededError: its turn did not come.
            ServiceError: the sender was closed.
        """
        future = self.submit(job, deadline)
        wait([future], deadline.remaining_seconds())
        if not future.cancelled() and future.cancel():
            raise queued_too_long(self._name, deadline)
        return future.result()  # done, or under way: then it ends by the deadline itself

    def is_current_thread(self) -> bool:
        """Say whether the caller is a job, or what a job calls."""
        return threading.current_thread() is self._thread

    def close(self, patience_seconds: float) -> None:
        """Take no more jobs; wait so long for those that were given, then cancel those that have not begun."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        if patience_seconds > 0 and not self.is_current_thread():
            self._thread.join(patience_seconds)
        with self._changed:
            given_up, self._jobs = self._jobs, deque()
        for _, future in given_up:
            if future.cancel():
                future.set_running_or_notify_cancel()

    def _has_room(self) -> bool:
        return len(self._jobs) < self._waiting or self.is_current_thread()

    def _run(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Wait for a job and run it; False at the end. Once it returns, nothing keeps the job's arrays alive."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or not self._is_open)
            if not self._jobs:
                return False
            job, future = self._jobs.popleft()
            self._changed.notify_all()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # the caller learns of it from the future
                future.set_exception(error)
        return True
