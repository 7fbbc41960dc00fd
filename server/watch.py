"""Ends transfers whose other side has stopped: neither threads nor memory wait for it for ever.

A stream is watched only while it is the peer's turn, to send the next part or to take the next answer; time that the
server itself takes never counts. Imports grpc's names alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import grpc

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOOKS_PER_LIMIT = 4


class Watch:
    """A thread that looks at the streams under way.

    Args:
        limit_seconds: how long a peer may take for its turn.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._since: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="numba-adam-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join()

    def receive(self, parts: Iterator[_T], context: grpc.ServicerContext) -> Iterator[_T]:
        """Return the parts of a request; the peer's turn is while the next one is awaited."""
        while True:
            self._begin(context)
            try:
                part = next(parts)
            except StopIteration:
                return
            finally:
                self._end(context)
            yield part

    def send(self, messages: Iterable[_T], context: grpc.ServicerContext) -> Iterator[_T]:
        """Return the messages of an answer; the peer's turn is while one waits to be taken."""
        for message in messages:
            self._begin(context)
            try:
                yield message
            finally:
                self._end(context)

    def _begin(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._since[context] = time.monotonic()

    def _end(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._since.pop(context, None)

    def _run(self) -> None:
        while not self._is_over.wait(self._limit_seconds / _LOOKS_PER_LIMIT):
            latest = time.monotonic() - self._limit_seconds
            with self._lock:
                stopped = [context for context, since in self._since.items() if since < latest]
            for context in stopped:
                _log.warning("a transfer of %s has not moved for %g s: ended", context.peer(), self._limit_seconds)
                context.cancel()  # type: ignore[no-untyped-call]  # so says the stub
