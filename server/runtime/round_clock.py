"""Tells the rounds and the leases of all models when their time is over, with one thread. Imports the models."""

from __future__ import annotations

import heapq
import logging
import threading
import time
import weakref
from collections.abc import Callable
from itertools import count

from numba_adam.errors import ServiceError
from numba_adam.server.runtime.model import Model

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
_Run = Callable[[Model], None]


class RoundClock:
    """A thread that ends rounds and leases.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, weakref.ref[Model], _Run]] = []
        self._numbers = count()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="numba-adam-rounds", daemon=True)

    def set_round(self, model: Model, attempt: int, seconds: float) -> None:
        """End an attempt at a round after some seconds, if it has not ended by then."""

        def end(model: Model) -> None:
            if model.rounds is not None:
                model.rounds.time_out(attempt)

        self.set(model, end, seconds)

    def set_leases(self, model: Model, seconds: float) -> None:
        """Look for leases that are over after some seconds."""
        self.set(model, lambda model: model.leases.expire(), seconds)

    def set(self, model: Model, run: _Run, seconds: float) -> None:
        """Call a function with a model, in its apply queue, after some seconds."""
        with self._changed:
            due = self._clock() + min(seconds, threading.TIMEOUT_MAX)
            heapq.heappush(self._due, (due, next(self._numbers), weakref.ref(model), run))
            if self._thread.ident is None and not self._is_stopped:
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            model, run = found[0](), found[1]
            if model is None or model.is_deleted:
                continue
            try:
                model.apply_queue.call(run, model)
            except ServiceError as error:  # such as a full disk: the round stays open
                _log.warning("model %s: a round or a lease could not be ended: %s", model.spec.name, error)
                self.set(model, run, _RETRY_SECONDS)
            except Exception:
                _log.exception("model %s: a round or a lease could not be ended", model.spec.name)
            del model

    def _next(self) -> tuple[weakref.ref[Model], _Run] | None:
        """Wait for the next timeout; return it, None once the clock has stopped."""
        with self._changed:
            while not self._is_stopped:
                now = self._clock()
                if self._due and self._due[0][0] <= now:
                    _, _, model, run = heapq.heappop(self._due)
                    return model, run
                self._changed.wait(min(self._due[0][0] - now, threading.TIMEOUT_MAX) if self._due else None)
            return None
