"""The thread behind push_async: jobs in order, one at a time, a bounded number waiting. May import nothing but ours."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from numba_adam.client.transport.retry import Deadline, closed, interrupted, queued_too_long
from numba_adam.client.transport.shield import LOOK_SECONDS, is_given_up
from numba_adam.errors import ServiceError

_T = TypeVar("_T")


class _Promise(Future[_T]):
    """A future that a forked child can read, whichever locks its parent held."""

    _outcome: tuple[_T | None, BaseException | None] | None = None

    def set_result(self, result: _T) -> None:
        self._outcome = result, None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._outcome = None, exception
        super().set_exception(exception)

    def begin_anew(self, error: BaseException) -> None:
        """In a forked child: keep the outcome; one that is not there will not come, which is told by an error."""
        outcome = self._outcome or (None, error)
        Future.__init__(self)  # new locks, no callbacks, nobody waiting
        if outcome[1] is not None:
            self.set_exception(outcome[1])
        else:
            self.set_result(outcome[0])  # type: ignore[arg-type]  # a result may be None


class Sender:
    """Runs jobs in the order in which they were given."""

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
        """Queue a job; waits while the queue is full.

        Only a job itself, or what it calls, never waits: nobody else could make room.

        Raises:
            DeadlineExceededError: there was no room in time.
            ServiceError: the sender was closed.
        """
        future: _Promise[_T] = _Promise()
        with self._changed:
            while not self._changed.wait_for(lambda: self._has_room() or not self._is_open, _look(deadline)):
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
        """Queue a job and return what it returns; one whose turn does not come in time is never begun.

        Raises:
            DeadlineExceededError: its turn did not come.
            ServiceError: the sender was closed.
        """
        future = self.submit(job, deadline)
        while not wait([future], _look(deadline)).done and deadline.remaining_seconds() and not is_given_up():
            pass
        if not future.cancelled() and future.cancel():
            raise queued_too_long(self._name, deadline)
        if is_given_up():
            raise interrupted(self._name)
        return future.result()  # done, or under way: then it ends by the deadline itself

    def is_current_thread(self) -> bool:
        """Say whether the caller is a job, or what a job calls."""
        return threading.current_thread() is self._thread

    def close(self, patience_seconds: float) -> None:
        """Take no more jobs; wait so long for those that were given, then cancel those that have not begun."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        patience = Deadline(patience_seconds)
        while not self.is_current_thread() and self._thread.is_alive() and patience.remaining_seconds():
            if is_given_up():
                break
            self._thread.join(_look(patience))
        with self._changed:
            given_up, self._jobs = self._jobs, deque()
        for _, future in given_up:
            if future.cancel():
                future.set_running_or_notify_cancel()

    def abandon(self) -> None:
        """In a forked child: settle the futures, for which nobody works there."""
        error = ServiceError(
            f"{self._name}: process {self._process_id} gave it to push_async and gets its answer; process "
            f"{os.getpid()}, which was forked from it, does not"
        )
        for promise in tuple(self._promises):
            promise.begin_anew(error)

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


def _look(deadline: Deadline | None) -> float:
    """Return how long to wait before looking whether the call was given up."""
    return LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline.remaining_seconds())
