"""Ends stalled calls, so that no thread and no memory is held for ever by a peer that stopped.

A call is watched only during the peer's turn: while the peer must send the next part or receive the next answer. The
server's own time never counts. A peer has a time limit for every mebibyte it moves, so single bytes do not extend it.
Under pressure, when other calls wait for the same threads or memory, limits are shorter; calls that have sent no
message end first. Imports grpc's names.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import grpc

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_CHECKS_PER_LIMIT = 4
LEAST_BYTES = 1 << 20
"""The limit starts again each time the peer has moved this many bytes."""

SHORT_PATIENCE_SECONDS = 1.0
"""Under pressure: limit for a call's first message."""

LONG_PATIENCE_SECONDS = 15.0
"""Under pressure: limit for each later turn."""

_PRESSURE_SECONDS = 1.0  # pressure lasts this long after a call had to wait
_CHECK_UNDER_PRESSURE_SECONDS = 0.1


class Allowance:
    """The time that the peer of one stream has left.

    Args:
        limit_seconds: limit for LEAST_BYTES, or for the rest if that is less.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.left_seconds = limit_seconds
        """Only the peer's turns use it up."""

        self._limit_seconds = limit_seconds
        self._moved_bytes = 0

    def spend(self, seconds: float, moved_bytes: int) -> None:
        """Count a turn of the peer, and the bytes it moved."""
        self.left_seconds -= seconds
        self._moved_bytes += moved_bytes
        if self._moved_bytes >= LEAST_BYTES:
            self.left_seconds, self._moved_bytes = self._limit_seconds, 0


class Turn(NamedTuple):
    """A peer's current turn."""

    began: float
    """Its start, by the monotonic clock."""

    due: float
    """Its deadline."""

    patience_seconds: float
    """Its limit under pressure."""


class Watch:
    """A thread that checks the turns of all calls.

    Args:
        limit_seconds: limit for a peer to move LEAST_BYTES, or the rest if that is less.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._turns: dict[grpc.ServicerContext, Turn] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pressure_until = 0.0
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="numba-adam-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def report_pressure(self) -> None:
        """Report that a call waits for threads or memory that other calls hold."""
        self._pressure_until = time.monotonic() + _PRESSURE_SECONDS
        self._wake.set()

    def first(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Return a call's first message; None if the call ends without one."""
        with self.turn(context, SHORT_PATIENCE_SECONDS):
            return next(parts, None)

    def receive(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yield a call's messages after the first. Waiting for the next one is the peer's turn."""
        allowance = Allowance(self._limit_seconds)
        while True:
            began = self._begin(context, allowance.left_seconds)
            try:
                part = next(parts)
            except StopIteration:
                return
            finally:
                self.end(context)
            allowance.spend(time.monotonic() - began, len(part))
            yield part

    def send(self, messages: Iterable[_T], context: grpc.ServicerContext) -> Iterator[_T]:
        """Yield the messages of an answer. A yielded message waits for the peer: it is the peer's turn."""
        allowance = Allowance(self._limit_seconds)
        for message in messages:
            began = self._begin(context, allowance.left_seconds)
            try:
                yield message
            finally:
                self.end(context)
            allowance.spend(time.monotonic() - began, len(message) if isinstance(message, bytes) else 0)

    def begin_last_turn(self, context: grpc.ServicerContext, nbytes: int) -> None:
        """Begin the last turn of a call: its peer receives an answer of `nbytes`. The turn ends with the call."""
        self._begin(context, self._limit_seconds * (1 + nbytes // LEAST_BYTES))

    @contextlib.contextmanager
    def turn(self, context: grpc.ServicerContext, patience_seconds: float) -> Iterator[None]:
        """Watch the body as a turn of the peer, with this limit under pressure."""
        self._begin(context, self._limit_seconds, patience_seconds)
        try:
            yield
        finally:
            self.end(context)

    def end(self, context: grpc.ServicerContext) -> None:
        """End the call's turn, if it has one."""
        with self._lock:
            self._turns.pop(context, None)

    def _begin(
        self, context: grpc.ServicerContext, seconds: float, patience_seconds: float = LONG_PATIENCE_SECONDS
    ) -> float:
        """Begin a turn of the peer; return its start."""
        now = time.monotonic()
        with self._lock:
            self._turns[context] = Turn(now, now + seconds, patience_seconds)
        return now

    def _run(self) -> None:
        pause = self._limit_seconds / _CHECKS_PER_LIMIT
        while not self._stopped.is_set():
            if self._is_under_pressure():  # the pause lets ended calls free what they hold
                self._stopped.wait(min(pause, _CHECK_UNDER_PRESSURE_SECONDS))
            else:
                self._wake.wait(pause)
            self._wake.clear()
            for context in self._overdue():
                _log.warning("ended a stalled call of %s", context.peer())
                context.cancel()  # type: ignore[no-untyped-call]  # so says the stub

    def _is_under_pressure(self) -> bool:
        return time.monotonic() < self._pressure_until

    def _overdue(self) -> list[grpc.ServicerContext]:
        """Return the calls to end: all past their deadline; if none, under pressure, all silent ones or the slowest."""
        now = time.monotonic()
        with self._lock:
            turns = list(self._turns.items())
        overdue = [context for context, turn in turns if turn.due < now]
        if overdue or not self._is_under_pressure():
            return overdue
        slow = [(turn, context) for context, turn in turns if now - turn.began > turn.patience_seconds]
        silent = [context for turn, context in slow if turn.patience_seconds < LONG_PATIENCE_SECONDS]
        return silent or [context for _, context in sorted(slow, key=lambda item: item[0].began)[:1]]
