"""The leases of a model's workers: when nobody waits for a worker any more. Imports the ledger.

Every call of a worker renews its lease. When a lease ends, the ledger is told: the clock of the worker and its push in
the open round are freed, and its session stays. A server that starts renews all leases.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from numba_adam.server.model.push_ledger import PushLedger


class _Model(Protocol):
    """What leases need of their model."""

    ledger: PushLedger

    @property
    def rounds(self) -> object: ...

    def depart(self, worker_id: str) -> None: ...


class Leases:
    """The leases of one model's workers.

    Args:
        model: the model.
        seconds: time after a worker's last call until its lease ends.
        clock: returns seconds.
    """

    def __init__(self, model: _Model, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self.seconds, self._clock = model, seconds, clock
        self._started = clock()
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()
        self._is_set = False
        self.on_set: Callable[[float], None] = lambda _: None
        """Is called with the seconds until `expire` should be called."""

        self.is_waiting: Callable[[str], bool] = lambda _: False
        """Returns whether a call of a worker waits for its answer now."""

    def renew(self, worker_id: str, epoch: int) -> None:
        """Note a call of a worker, if it is of its newest session."""
        session = self._model.ledger.sessions.get(worker_id)
        if session is not None and session.epoch == epoch:
            self._seen[worker_id] = self._clock()
            if not self._is_set and (self._model.rounds is not None or self._model.ledger.clocks.bound is not None):
                self.set()

    def set(self) -> None:
        """Have the ends of leases looked for from now on."""
        with self._lock:
            if self._is_set:
                return
            self._is_set = True
        self.on_set(self.seconds)

    def idle_seconds(self, worker_id: str) -> float:
        """Return the time since a worker's last call, or since the server started."""
        return max(0.0, self._clock() - self._seen.get(worker_id, self._started))

    def left_seconds(self, worker_id: str) -> float:
        """Return the time until a lease ends; 0: it has ended."""
        return max(0.0, self.seconds - self.idle_seconds(worker_id))

    def expire(self) -> None:
        """End the leases that are over. Runs in the apply queue."""
        ledger = self._model.ledger
        for worker_id in [each for each in list(self._seen) if each not in ledger.sessions]:
            self._seen.pop(worker_id, None)
        left = []
        for worker_id in [each for each in ledger.sessions if not ledger.has_departed(each)]:
            if self.is_waiting(worker_id):
                self._seen[worker_id] = self._clock()
            if (seconds := self.left_seconds(worker_id)) > 0:
                left.append(seconds)
            else:
                self._model.depart(worker_id)
        with self._lock:
            self._is_set = bool(left)
        if left:
            self.on_set(min(left))
