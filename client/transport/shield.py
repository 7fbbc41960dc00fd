"""Calls of the main thread, carried out by another one, where no signal can interrupt them.

Python runs signal handlers in the main thread, between any two instructions of whatever it does. One that raises, as
that of Ctrl-C, would leave gRPC's locks held and its counts wrong, and ours. So the main thread only waits, and when
it is interrupted the call is given up: `is_given_up` tells it so. May import the standard library only.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

_PATIENCE_SECONDS = 2.0  # how long an interrupted call may take to end before the interruption goes on without it
LOOK_SECONDS = 0.1
"""How often a call that waits looks whether it was given up."""


class _Errand:
    """One call on its way."""

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
    """The thread of one worker; knows its errand."""

    def __init__(self, errands: queue.SimpleQueue[_Errand | None]) -> None:
        super().__init__(name="numba-adam call", daemon=True)
        self.errands = errands
        self.errand: _Errand | None = None
        self.process_id = os.getpid()

    def run(self) -> None:
        while (errand := self.errands.get()) is not None:
            self.errand = errand
            errand.carry_out()
            self.errand = errand = None
            if self.process_id != os.getpid():  # the errand forked, and this is the child: nobody asks for more
                return


class _Worker:
    """A thread that ends when this object does."""

    def __init__(self) -> None:
        self.errands: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self.thread = _Thread(self.errands)
        self.thread.start()

    def __del__(self) -> None:
        self.errands.put(None)


class Shield:
    """Runs the main thread's calls, one at a time, on a thread that it keeps for the next."""

    def __init__(self) -> None:
        self._idle: _Worker | None = None

    def run(self, job: Callable[[], _T], give_up: Callable[[], None]) -> _T:
        """Run a job and return what it returns; other threads than the main one run it themselves.

        Args:
            job: what to do. Its waits look at `is_given_up`.
            give_up: called, on a thread of its own, when the main thread was interrupted: ends what the job waits for.
        """
        if threading.current_thread() is not threading.main_thread():
            return job()
        worker, self._idle = self._idle, None  # a signal handler that calls in its turn finds none, and makes one
        worker = worker or _Worker()
        errand = _Errand(job)
        try:
            worker.errands.put(errand)
            while not errand.done.acquire(timeout=LOOK_SECONDS):  # a signal just before it would else go unseen
                pass
        except BaseException:
            errand.is_given_up = True
            _thread.start_new_thread(give_up, ())  # one step, and the first: a second signal may interrupt the next
            worker.errands.put(None)
            errand.done.acquire(timeout=_PATIENCE_SECONDS)
            raise
        self._idle = worker
        if errand.error is not None:
            try:
                raise errand.error
            finally:
                del errand  # the error's traceback knows this frame
        result: _T = errand.result
        return result

    def close(self) -> None:
        """End the thread that is kept."""
        worker, self._idle = self._idle, None
        if worker is not None:
            worker.errands.put(None)
            if worker.thread is not threading.current_thread():
                worker.thread.join(_PATIENCE_SECONDS)


def is_given_up() -> bool:
    """Say whether the call that this thread carries out was given up by the main thread."""
    thread = threading.current_thread()
    return isinstance(thread, _Thread) and thread.errand is not None and thread.errand.is_given_up
