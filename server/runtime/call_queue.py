"""Runs calls one at a time, in the order of their arrival.

Each model has two queues, one for changes and one for snapshots, so no model waits for another. A queue has no thread:
a call runs on its caller's thread, after the earlier calls. So models need no threads. The order of the calls is the
order of versions. Imports the standard library and the error tree.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba_adam.errors import ServerUnavailableError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class CallQueue:
    """Runs one call at a time, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # one lock per waiting call; releasing it starts the call
        self._is_busy = False
        self._is_stopped = False

    @property
    def waiting(self) -> int:
        """Number of calls that wait."""
        return len(self._waiting)

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a function while no other call runs; return its result, or raise its error.

        Raises:
            ServerUnavailableError: the queue has stopped.
        """
        self._enter()
        try:
            return function(*args, **kwargs)
        finally:
            self._leave()

    def stop(self) -> None:
        """Refuse new calls, and return once the calls before are done."""
        self._enter(is_last=True)
        self._leave()

    def _enter(self, *, is_last: bool = False) -> None:
        """Wait for the turn."""
        with self._lock:
            if self._is_stopped and not is_last:
                raise ServerUnavailableError("the server is stopping; try again when it is back")
            self._is_stopped = self._is_stopped or is_last
            if not self._is_busy:
                self._is_busy = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C: this call must not get the turn later
            self._give_up(turn)
            raise

    def _leave(self) -> None:
        """Give the turn to the next call."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_busy = False

    def _give_up(self, turn: threading.Lock) -> None:
        """Leave the queue, or pass on a turn that has just come."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self._leave()
