"""The one thread that changes models: sessions, updates, and the copies that must not see half an update.

Whatever runs here runs alone and in the order in which it was handed over; that order is the order of versions.
Imports the standard library, and Numba to set this thread's share of threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from numba_adam.errors import ServerUnavailableError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Engine:
    """A thread with a queue.

    Args:
        threads: how many threads an update takes; 0: all that Numba has.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="numba-adam-engine", daemon=True)
        self._gate = threading.Lock()
        self._is_stopped = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a function on the engine's thread and return what it returns, or raise what it raises.

        Raises:
            ServerUnavailableError: the engine has stopped.
        """
        future: Future[_R] = Future()

        def job() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._gate:
            if self._is_stopped:
                raise ServerUnavailableError("the server is stopping; try again when it is back")
            self._jobs.put(job)
        return future.result()

    def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        with self._gate:
            self._is_stopped = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        _use_threads(self._threads)
        while (job := self._jobs.get()) is not None:
            job()
            del job  # let go of a finished transfer's memory while waiting for the next


def _use_threads(threads: int) -> None:
    """Set the number of threads of parallel updates launched from this thread."""
    if threads:
        import numba

        set_num_threads: Any = numba.set_num_threads
        set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
