"""The one thread that changes models: sessions, updates, and the copies that must not see half an update.

Whatever runs here runs alone and in the order in which it was handed over; that order is the order of versions.
Imports the standard library, and Numba to set this thread's share of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from numba_adam.errors import ServerUnavailableError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Engine:
    """A thread with a queue; it starts with the first call.

    Args:
        threads: how many threads an update takes; 0: all that Numba has.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(1, "numba-adam-engine", initializer=_use_threads, initargs=(threads,))

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a function on the engine's thread and return what it returns, or raise what it raises.

        Raises:
            ServerUnavailableError: the engine has stopped.
        """
        # The future gets no name here: an error's traceback would keep it alive, and it the error, in a circle that
        # also holds the arguments, a transfer's memory among them.
        return self._submit(function, *args, **kwargs).result()

    def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        self._executor.shutdown()

    def _submit(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        try:
            return self._executor.submit(function, *args, **kwargs)
        except RuntimeError as error:
            raise ServerUnavailableError("the server is stopping; try again when it is back") from error


def _use_threads(threads: int) -> None:
    """Set the number of threads of parallel updates launched from this thread."""
    if threads:
        import numba

        set_num_threads: Any = numba.set_num_threads
        set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
