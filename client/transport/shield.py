"""Runs the main thread's calls on another thread, where signals cannot interrupt them.

Python runs signal handlers in the main thread, between any two instructions. A handler that raises, such as that of
Ctrl-C, could leave locks held and counters wrong, in gRPC and here. So another thread runs the call, and the main
thread waits. An interrupt gives the call up; the call learns it from `is_given_up`. May import the standard library
only.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 2.0  # how long an interrupt waits for the call to end
POLL_SECONDS = 0.1
"""Interval at which a waiting call checks whether it was given up."""


class _Call:
    """One call, with its result or error."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self.job = job
        self.is_given_up = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def carry_out(self) -> None:
        try:
            self.result = self.job()
        except BaseException as error:  # the main thread raises it
            self.error = error
        finally:
            self.done.release()


class _Thread(threading.Thread):
    """The thread of one worker, with the call that it runs."""

    def __init__(self, calls: queue.SimpleQueue[_Call | None]) -> None:
        super().__init__(name="numba-adam call", daemon=True)
        self.calls = calls
        self.call: _Call | None = None
        self.process_id = os.getpid()

    def run(self) -> None:
        while (call := self.calls.get()) is not None:
            self.call = call
            call.carry_out()
            self.call = call = None
            if self.process_id != os.getpid():  # the call forked, and this is the child: no further calls come
                return


class _Worker:
    """Owns a thread, which ends when this object is deleted."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.thread = _Thread(self.calls)
        self.thread.start()

    def __del__(self) -> None:
        self.calls.put(None)


class Shield:
    """Runs the main thread's calls, one at a time, on a thread that it reuses."""

    def __init__(self) -> None:
        self._idle: _Worker | None = None

    def run(self, job: Callable[[], _T], give_up: Callable[[], None]) -> _T:
        """Run a job and return its result. Threads other than the main thread run it directly.

        Args:
            job: the call. It must check `is_given_up` while it waits.
            give_up: cancels what the job waits for. It runs on a new thread if the main thread was interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            return job()
        worker, self._idle = self._idle, None  # a call from a signal handler then creates its own worker
        worker = worker or _Worker()
        call = _Call(job)
        try:
            worker.calls.put(call)
            while not call.done.acquire(
                timeout=POLL_SECONDS
            ):  # without a timeout, a signal just before it would go unseen
                pass
        except BaseException:
            call.is_given_up = True
            _thread.start_new_thread(give_up, ())  # first, and one step: a second signal may come
            worker.calls.put(None)
            call.done.acquire(timeout=_TIMEOUT_SECONDS)
            raise
        self._idle = worker
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # the error's traceback refers to this frame
        result: _T = call.result
        return result

    def close(self) -> None:
        """End the reused thread."""
        worker, self._idle = self._idle, None
        if worker is not None:
            worker.calls.put(None)
            if worker.thread is not threading.current_thread():
                worker.thread.join(_TIMEOUT_SECONDS)


def is_given_up(thread: threading.Thread | None = None) -> bool:
    """Return whether the main thread gave up the call that a thread runs; None: this thread."""
    runs = threading.current_thread() if thread is None else thread
    call = runs.call if isinstance(runs, _Thread) else None
    return call is not None and call.is_given_up
