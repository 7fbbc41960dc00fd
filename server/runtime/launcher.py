"""Runs the slices of all models' large updates, one slice at a time, in turns.

OpenMP keeps threads for every thread that launches, so one thread launches for all models. A second one does while
small calls come: its slices leave one processor free and have a lower priority. The first thread's priority never
changes, since only a privileged process could raise it again.

Imports the standard library, the error tree, and Numba to set a thread's share of threads.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

from numba_adam.errors import ServerUnavailableError

_SMALL_CALL_SECONDS = 0.05  # so long after a small call, the next one is expected
_HAS_THREAD_PRIORITIES = sys.platform == "linux"
_NICENESS = 5  # a third of the usual share where processes compete: small calls go first, and the update goes on


class _Job:
    """One caller's slices."""

    def __init__(self, slices: Iterator[object]) -> None:
        self.slices = slices
        self.error: BaseException | None = None
        self.is_over = threading.Lock()  # released once it is
        self.is_over.acquire()


class Launcher:
    """Runs slices on threads of its own, which start when they are needed.

    Args:
        threads: how many threads a launch takes; 0, or more than Numba has: all that it has.
        clock: returns seconds.
    """

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        most = numba.config.NUMBA_NUM_THREADS
        self.threads = min(threads or most, most)
        """Threads that a launch takes."""

        self.fewer_threads = max(1, min(self.threads, numba.config.NUMBA_DEFAULT_NUM_THREADS - 1))
        """Threads that a launch takes while small calls come: one processor stays free."""

        self._clock = clock
        self._small_calls_until = -float("inf")
        self._lock = threading.Lock()
        self._jobs = 0  # that are not over
        self._is_stopped = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="numba-adam-launcher", daemon=True)
        self._background = ThreadPoolExecutor(1, "numba-adam-background", self._enter_background)

    @property
    def is_idle(self) -> bool:
        """Whether a launch would begin at once."""
        return not self._jobs

    def note_small_call(self) -> None:
        """Say that a small call begins or ends: large updates give way to such calls for a moment."""
        self._small_calls_until = self._clock() + _SMALL_CALL_SECONDS

    def run(self, slices: Iterator[object]) -> None:
        """Exhaust an iterator on the launcher's threads; between two items, other jobs have their turn.

        Raises:
            ServerUnavailableError: the launcher has stopped.
        """
        job = _Job(slices)
        with self._lock:
            if self._is_stopped:
                raise ServerUnavailableError("the server is stopping; try again when it is back")
            self._jobs += 1
            self._queue.put(job)
            if self._thread.ident is None:
                self._thread.start()
        job.is_over.acquire()
        error, job.error = job.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: in a circle, both would keep the gradient alive

    def stop(self) -> None:
        """Finish the jobs that were begun, then end the threads."""
        with self._lock:
            self._is_stopped = True
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._background.shutdown()

    def _work(self) -> None:
        """Run slices until there are no more jobs and the launcher has stopped."""
        use_threads(self.threads)
        while True:
            job = self._queue.get()
            if job is not None:
                self._advance(job)
            elif not self._jobs:
                return
            else:
                self._queue.put(None)

    def _advance(self, job: _Job) -> None:
        """Run a job's next slice, and more of them for as long as there is no other job."""
        try:
            self._step(job)
            while self._jobs == 1:
                self._step(job)
        except StopIteration:
            self._end(job)
        except BaseException as error:
            job.error = error
            self._end(job)
        else:
            self._queue.put(job)

    def _step(self, job: _Job) -> None:
        """Run a job's next slice, in the background while small calls come.

        Raises:
            StopIteration: there is none.
        """
        if self._clock() >= self._small_calls_until:
            next(job.slices)
            return
        try:
            call = self._background.submit(next, job.slices)
        except RuntimeError:  # the interpreter is about to exit: no thread starts any more
            next(job.slices)
            return
        try:
            call.result()
        finally:
            del call  # it holds the error, whose traceback holds this frame

    def _enter_background(self) -> None:
        """Prepare the thread for slices beside small calls."""
        use_threads(self.fewer_threads)
        _lower_priority()

    def _end(self, job: _Job) -> None:
        with self._lock:
            self._jobs -= 1
        job.is_over.release()


def use_threads(threads: int) -> None:
    """Set the number of threads of parallel updates launched from this thread."""
    set_num_threads: Callable[[int], Any] = numba.set_num_threads
    set_num_threads(threads)


def _lower_priority() -> None:
    """Have this thread, and threads that it starts, give way to others of this machine.

    On other systems than Linux a niceness is the whole process's: there only the processor stays free.
    """
    if _HAS_THREAD_PRIORITIES:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
