"""The thread behind push_async: runs jobs in order, with a bounded queue. May import its neighbours and the errors."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from numba_adam.client.transport.retry import Deadline, closed, interrupted, queued_too_long
from numba_adam.client.transport.shield import POLL_SECONDS, is_given_up
from numba_adam.errors import ServiceError

_T = TypeVar("_T")


class _Promise(Future[_T]):
    """A future that a forked child can read, even if the parent held its locks."""

    _outcome: tuple[_T | None, BaseException | None] | None = None

    def set_result(self, result: _T) -> None:
        self._outcome = result, None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._outcome = None, exception
        super().set_exception(exception)

    def settle_in_child(self, error: BaseException) -> None:
        """In a forked child: keep the outcome, or set `error` if there is none, because the child never gets one."""
        outcome = self._outcome or (None, error)
        Future.__init__(self)  # new locks, no callbacks, no waiting threads
        if outcome[1] is not None:
            self.set_exception(outcome[1])
        else:
            self.set_result(outcome[0])  # type: ignore[arg-type]  # a result may be None


class Sender:
    """Runs jobs on one thread, in the order of submission."""

    def __init__(self, name: str, waiting: int) -> None:
        self._name, self._waiting = name, waiting
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_open = True
        self._promises: weakref.WeakSet[_Promise[Any]] = weakref.WeakSet()
        self._process_id = os.getpid()
        self._changed = threading.Condition()  # guards the two above
        self._thread = threading.Thread(target=self._run, name=f"numba-adam push {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], _T], deadline: Deadline | None = None) -> Future[_T]:
        """Queue a job; wait while the queue is full.

        A call from inside a job does not wait: only this thread can shorten the queue.

        Raises:
            DeadlineExceededError: the queue was full until the deadline.
            ServiceError: the sender was closed.
        """
        future: _Promise[_T] = _Promise()
        with self._changed:
            while not self._changed.wait_for(lambda: self._has_room() or not self._is_open, _poll_seconds(deadline)):
                if is_given_up():
                    raise interrupted(self._name)
                if deadline is not None and not deadline.remaining_seconds():
                    raise queued_too_long(self._name, deadline)
            if not self._is_open:
                raise closed(self._name)
            self._promises.add(future)
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future

    def run(self, job: Callable[[], _T], deadline: Deadline) -> _T:
        """Queue a job and return its result. A job that has not started by the deadline is cancelled.

        Raises:
            DeadlineExceededError: the job did not start in time.
            ServiceError: the sender was closed.
        """
        future = self.submit(job, deadline)
        while not wait([future], _poll_seconds(deadline)).done and deadline.remaining_seconds() and not is_given_up():
            pass
        if not future.cancelled() and future.cancel():
            raise queued_too_long(self._name, deadline)
        if is_given_up():
            raise interrupted(self._name)
        return future.result()  # done or running: a running job keeps the deadline itself

    def is_current_thread(self) -> bool:
        """Return whether the caller runs on the sender's thread."""
        return threading.current_thread() is self._thread

    def close(self, timeout_seconds: float) -> None:
        """Accept no more jobs; wait for the queued ones until the timeout, then cancel those that have not started."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        limit = Deadline(timeout_seconds)
        while not self.is_current_thread() and self._thread.is_alive() and limit.remaining_seconds():
            if is_given_up():
                break
            self._thread.join(_poll_seconds(limit))
        with self._changed:
            given_up, self._jobs = self._jobs, deque()
        for _, future in given_up:
            if future.cancel():
                future.set_running_or_notify_cancel()

    def abandon(self) -> None:
        """In a forked child: settle the futures, because the sender's thread does not exist there."""
        error = ServiceError(
            f"{self._name}: process {self._process_id} called push_async and gets the answer; process {os.getpid()}, "
            "which was forked from it, does not. Wait for the future in the parent"
        )
        for promise in tuple(self._promises):
            promise.settle_in_child(error)

    def _has_room(self) -> bool:
        return len(self._jobs) < self._waiting or self.is_current_thread()

    def _run(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Wait for a job and run it; return False if the sender was closed. Keeps no reference to the job's arrays."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or not self._is_open)
            if not self._jobs:
                return False
            job, future = self._jobs.popleft()
            self._changed.notify_all()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # the future passes it to the caller
                future.set_exception(error)
        return True


def _poll_seconds(deadline: Deadline | None) -> float:
    """Return how long to wait before the next check whether the call was given up."""
    return POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline.remaining_seconds())
