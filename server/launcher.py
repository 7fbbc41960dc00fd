"""The one thread that makes parallel launches: the slices of all models' large updates, in turns.

OpenMP keeps threads for every thread that launches, so one thread launches for all models. Imports the standard
library, the error tree, and Numba to set a thread's share of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numba

from numba_adam.errors import ServerUnavailableError


class Launcher:
    """A thread that starts with the first launch.

    Args:
        threads: how many threads a launch takes; 0, or more than Numba has: all that it has.
    """

    def __init__(self, threads: int) -> None:
        most = numba.config.NUMBA_NUM_THREADS
        self.threads = min(threads or most, most)
        """Threads that a launch takes."""

        self._executor = ThreadPoolExecutor(1, "numba-adam-launcher", initializer=use_threads, initargs=(self.threads,))
        self._lock = threading.Lock()
        self._jobs = 0

    @property
    def is_idle(self) -> bool:
        """Whether a launch would begin at once."""
        return not self._jobs

    def run(self, slices: Iterator[object]) -> None:
        """Exhaust an iterator on the launcher's thread; between two items, other jobs have their turn.

        Raises:
            ServerUnavailableError: the launcher has stopped.
        """
        # The future gets no name here: an error's traceback would keep it alive, and it the error, in a circle that
        # also holds the gradient.
        self._begin(slices).result()

    def stop(self) -> None:
        """Finish the jobs that were begun, then end the thread."""
        self._executor.shutdown()

    def _begin(self, slices: Iterator[object]) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            self._jobs += 1
        if not self._submit(slices, done):
            self._end()
            raise ServerUnavailableError("the server is stopping; try again when it is back")
        return done

    def _submit(self, slices: Iterator[object], done: Future[None]) -> bool:
        """Put a job at the end of the queue; False when the launcher has stopped."""
        try:
            self._executor.submit(self._advance, slices, done)
        except RuntimeError:
            return False
        return True

    def _advance(self, slices: Iterator[object], done: Future[None]) -> None:
        """Run a job's next slice, and more of them for as long as no other job waits."""
        try:
            next(slices)
            while self._jobs == 1 or not self._submit(slices, done):
                next(slices)
        except StopIteration:
            self._end()
            done.set_result(None)
        except BaseException as error:
            self._end()
            done.set_exception(error)

    def _end(self) -> None:
        with self._lock:
            self._jobs -= 1


def use_threads(threads: int) -> None:
    """Set the number of threads of parallel updates launched from this thread."""
    set_num_threads: Callable[[int], Any] = numba.set_num_threads
    set_num_threads(threads)
