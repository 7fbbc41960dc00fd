"""What changes a model: one call at a time, in the order in which they came.

A model has call queues of its own, so that none waits for another model's work. A queue has no thread: a call runs on
the thread that makes it, once those before it are done. So models cost no threads, however many there are. The order
of the calls is the order of versions. Imports the standard library and the error tree.
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
    """Runs functions alone: whoever has waited for longest is next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # each is released when its turn has come
        self._is_busy = False
        self._is_stopped = False

    @property
    def waiting(self) -> int:
        """Number of calls that wait for their turn."""
        return len(self._waiting)

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a function alone and return what it returns, or raise what it raises.

        Raises:
            ServerUnavailableError: the queue has stopped.
        """
        self._enter()
        try:
            return function(*args, **kwargs)
        finally:
            self._leave()

    def stop(self) -> None:
        """Refuse what comes from now on, and return once everything before it is done."""
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
        except BaseException:  # Ctrl-C: the turn must not be given to one who has gone
            self._give_up(turn)
            raise

    def _leave(self) -> None:
        """Hand the turn on."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_busy = False

    def _give_up(self, turn: threading.Lock) -> None:
        """Leave the queue, or hand on a turn that came in this very moment."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self._leave()
