"""Ends transfers that move too little: neither threads nor memory wait for their other side for ever.

A stream is watched only while it is the peer's turn, to send the next part or to take the next answer; time that the
server itself takes never counts. The peer's turns may take so long in all until a mebibyte has moved: a byte now and
then buys no time. Imports grpc's names and the framing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import grpc

from numba_adam.ps.framing import Chunk

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOOKS_PER_LIMIT = 4
LEAST_BYTES = 1 << 20
"""A peer that has moved so many has earned itself the whole time again."""


class Allowance:
    """How long the peer of one stream may still take.

    Args:
        limit_seconds: what it may take for LEAST_BYTES, or for the rest if that is less.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.left_seconds = limit_seconds
        """Of its own time; the server's does not count."""

        self._limit_seconds = limit_seconds
        self._moved_bytes = 0

    def spend(self, seconds: float, moved_bytes: int) -> None:
        """Count a turn of the peer, and what it moved."""
        self.left_seconds -= seconds
        self._moved_bytes += moved_bytes
        if self._moved_bytes >= LEAST_BYTES:
            self.left_seconds, self._moved_bytes = self._limit_seconds, 0


class Watch:
    """A thread that looks at the streams under way.

    Args:
        limit_seconds: how long a peer may take to move LEAST_BYTES, or the rest if that is less.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._due: dict[grpc.ServicerContext, float] = {}  # when the turns that are under way must be over
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
        allowance = Allowance(self._limit_seconds)
        while True:
            began = self._begin(context, allowance)
            try:
                part = next(parts)
            except StopIteration:
                return
            finally:
                self._end(context)
            allowance.spend(time.monotonic() - began, _size(part))
            yield part

    def send(self, messages: Iterable[_T], context: grpc.ServicerContext) -> Iterator[_T]:
        """Return the messages of an answer; the peer's turn is while one waits to be taken."""
        allowance = Allowance(self._limit_seconds)
        for message in messages:
            began = self._begin(context, allowance)
            try:
                yield message
            finally:
                self._end(context)
            allowance.spend(time.monotonic() - began, _size(message))

    def _begin(self, context: grpc.ServicerContext, allowance: Allowance) -> float:
        """Begin a turn of the peer; return the time."""
        now = time.monotonic()
        with self._lock:
            self._due[context] = now + allowance.left_seconds
        return now

    def _end(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._due.pop(context, None)

    def _run(self) -> None:
        while not self._is_over.wait(self._limit_seconds / _LOOKS_PER_LIMIT):
            now = time.monotonic()
            with self._lock:
                stopped = [context for context, due in self._due.items() if due < now]
            for context in stopped:
                _log.warning(
                    "a transfer of %s moved less than 1 MiB in %g s: ended", context.peer(), self._limit_seconds
                )
                context.cancel()  # type: ignore[no-untyped-call]  # so says the stub


def _size(part: object) -> int:
    """Return how much of a payload a message moves."""
    if isinstance(part, Chunk):
        return part.data.nbytes
    return len(part) if isinstance(part, bytes) else 0  # our own chunks, encoded; headers and trailers move nothing
