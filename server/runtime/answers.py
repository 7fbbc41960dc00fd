"""Calls that wait for the answer to a push in a round. None of them has a thread: one thread answers all.

Imports the models.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from numba_adam.server.model.push_key import PushKey
from numba_adam.server.runtime.model import Model

_log = logging.getLogger(__name__)


class Waiter:
    """One call that waits.

    Args:
        model: the model.
        key: the push.
        answer: answers the call. It is called once, from any thread, when the push may have its answer.
    """

    def __init__(self, model: Model, key: PushKey, answer: Callable[[], None]) -> None:
        self.model, self.key, self._answer = model, key, answer
        self._is_answered = threading.Lock()

    def answer(self) -> None:
        """Answer the call, unless that has been done."""
        if self._is_answered.acquire(blocking=False):
            try:
                self._answer()
            except Exception:
                _log.exception("model %s: a waiting call could not be answered", self.model.spec.name)


class Answers:
    """The calls that wait, by model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: WeakKeyDictionary[Model, set[Waiter]] = WeakKeyDictionary()
        self._ended: queue.SimpleQueue[Model | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="numba-adam-answers", daemon=True)
        self._is_stopped = False

    def add(self, waiter: Waiter) -> None:
        """Answer a call as soon as its push has left its round; at once if it has."""
        with self._lock:
            is_late = self._is_stopped
            if not is_late:
                self._waiting.setdefault(waiter.model, set()).add(waiter)
                if self._thread.ident is None:
                    self._thread.start()
        if is_late or not is_held(waiter):
            self.forget(waiter)
            waiter.answer()

    def is_waiting(self, model: Model, worker_id: str) -> bool:
        """Return whether a call of a worker waits."""
        with self._lock:
            return any(waiter.key.worker_id == worker_id for waiter in self._waiting.get(model, ()))

    def forget(self, waiter: Waiter) -> None:
        """Drop a call, which has ended."""
        with self._lock:
            self._waiting.get(waiter.model, set()).discard(waiter)

    def note_end(self, model: Model) -> None:
        """Answer the calls that wait for a round that has ended. Does not wait for that."""
        self._ended.put(model)

    def stop(self) -> None:
        """Answer all calls now, and later ones at once."""
        with self._lock:
            self._is_stopped = True
            waiting = [waiter for waiters in self._waiting.values() for waiter in waiters]
            self._waiting.clear()
        self._ended.put(None)
        for waiter in waiting:
            waiter.answer()

    def _run(self) -> None:
        while (model := self._ended.get()) is not None:
            with self._lock:
                waiting = self._waiting.get(model, set())
                ready = [waiter for waiter in waiting if not is_held(waiter)]
                waiting.difference_update(ready)
            for waiter in ready:
                waiter.answer()
            del model, waiting, ready


def is_held(waiter: Waiter) -> bool:
    """Return whether the open round has the push of a call."""
    held = waiter.model.ledger.round.of(waiter.key.worker_id)
    return held is not None and held.key == waiter.key and not waiter.model.is_deleted
