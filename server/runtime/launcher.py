"""Runs the slices of all models' large updates, one slice at a time, round robin.

OpenMP keeps a set of threads for every thread that launches, so one thread launches for all models. While small calls
arrive, a second thread launches instead: its slices leave one processor free and have a lower priority. The first
thread's priority never changes, because only a privileged process could raise it again.

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

_SMALL_CALL_SECONDS = 1.0  # large updates give way for this long after a small call, because another one is likely
_HAS_THREAD_PRIORITIES = sys.platform == "linux"
_NICENESS = 5  # a third of the usual processor time under load: small calls run first, the update still advances


class _Job:
    """One caller's slices."""

    def __init__(self, slices: Iterator[object]) -> None:
        self.slices = slices
        self.error: BaseException | None = None
        self.is_over = threading.Lock()  # released at the end of the job
        self.is_over.acquire()


class Launcher:
    """Runs slices on its own threads, which start on first use.

    Args:
        threads: number of threads of a launch; 0, or more than Numba has: all that Numba has.
        clock: returns seconds.
    """

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        most = numba.config.NUMBA_NUM_THREADS
        self.threads = min(threads or most, most)
        """Number of threads of a launch."""

        self.fewer_threads = max(1, min(self.threads, numba.config.NUMBA_DEFAULT_NUM_THREADS - 1))
        """Number of threads of a launch while small calls arrive: one processor stays free."""

        self._clock = clock
        self._small_calls_until = -float("inf")
        self._lock = threading.Lock()
        self._jobs = 0  # waiting or running
        self._is_stopped = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="numba-adam-launcher", daemon=True)
        self._background = ThreadPoolExecutor(1, "numba-adam-background", self._enter_background)

    @property
    def is_idle(self) -> bool:
        """Whether a launch would start at once."""
        return not self._jobs

    def note_small_call(self) -> None:
        """Note that a small call begins or ends: large updates give way for a moment."""
        self._small_calls_until = self._clock() + _SMALL_CALL_SECONDS

    def run(self, slices: Iterator[object]) -> None:
        """Exhaust an iterator on the launcher's threads; between two items, other jobs may run.

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
                del error  # its traceback references this frame; the cycle would keep the gradient alive

    def stop(self) -> None:
        """Finish the jobs that were started, then end the threads."""
        with self._lock:
            self._is_stopped = True
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._background.shutdown()

    def _work(self) -> None:
        """Run slices until the launcher has stopped and no jobs are left."""
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
        """Run a job's next slice, and further ones while there is no other job."""
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
        """Run a job's next slice, in the background while small calls arrive.

        Raises:
            StopIteration: no slice is left.
        """
        if self._clock() >= self._small_calls_until:
            next(job.slices)
            return
        try:
            call = self._background.submit(next, job.slices)
        except RuntimeError:  # the interpreter exits: no new thread can start
            next(job.slices)
            return
        try:
            call.result()
        finally:
            del call  # it references the error, whose traceback references this frame

    def _enter_background(self) -> None:
        """Prepare the background thread."""
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
    """Lower the priority of this thread and of the threads that it starts.

    Only Linux has a niceness per thread. Elsewhere it belongs to the whole process, and stays as it is.
    """
    if _HAS_THREAD_PRIORITIES:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
