"""The one thread that makes parallel launches: the slices of all models' large updates, in turns.

OpenMP keeps threads for every thread that launches, so one thread launches for all models. Imports the standard
library, the error tree, and Numba to set a thread's share of threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numba

from numba_adam.errors import ServerUnavailableError


class _Job:
    """One caller's slices."""

    def __init__(self, slices: Iterator[object]) -> None:
        self.slices = slices
        self.error: BaseException | None = None
        self.is_over = threading.Lock()  # released once it is
        self.is_over.acquire()


class Launcher:
    """A thread that starts with the first launch.

    Args:
        threads: how many threads a launch takes; 0, or more than Numba has: all that it has.
    """

    def __init__(self, threads: int) -> None:
        most = numba.config.NUMBA_NUM_THREADS
        self.threads = min(threads or most, most)
        """Threads that a launch takes."""

        self._lock = threading.Lock()
        self._jobs = 0  # that are not over
        self._is_stopped = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="numba-adam-launcher", daemon=True)

    @property
    def is_idle(self) -> bool:
        """Whether a launch would begin at once."""
        return not self._jobs

    def run(self, slices: Iterator[object]) -> None:
        """Exhaust an iterator on the launcher's thread; between two items, other jobs have their turn.

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
        """Finish the jobs that were begun, then end the thread."""
        with self._lock:
            self._is_stopped = True
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

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
            next(job.slices)
            while self._jobs == 1:
                next(job.slices)
        except StopIteration:
            self._end(job)
        except BaseException as error:
            job.error = error
            self._end(job)
        else:
            self._queue.put(job)

    def _end(self, job: _Job) -> None:
        with self._lock:
            self._jobs -= 1
        job.is_over.release()


def use_threads(threads: int) -> None:
    """Set the number of threads of parallel updates launched from this thread."""
    set_num_threads: Callable[[int], Any] = numba.set_num_threads
    set_num_threads(threads)
