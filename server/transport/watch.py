"""Ends calls whose peers keep the server waiting: neither threads nor memory wait for their other side for ever.

A call is watched only while it is the peer's turn, to send the next part or to take the next answer; time that the
server itself takes never counts. The peer's turns may take so long in all until a mebibyte has moved: a byte now and
then buys no time. While others have to wait for what such calls hold, patience is shorter: first with those that have
not sent a single message. Imports grpc's names.
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
_LOOKS_PER_LIMIT = 4
LEAST_BYTES = 1 << 20
"""A peer that has moved so many has earned itself the whole time again."""

SHORT_PATIENCE_SECONDS = 1.0
"""While others wait: how long a call may take to send its first message."""

LONG_PATIENCE_SECONDS = 15.0
"""While others wait: how long a single later turn may take."""

_PRESSURE_SECONDS = 1.0  # for so long after somebody had to wait, patience is short
_LOOK_UNDER_PRESSURE_SECONDS = 0.1


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


class Turn(NamedTuple):
    """A peer's turn that is under way."""

    began: float
    """When it began, by the monotonic clock."""

    due: float
    """When it must be over."""

    patience_seconds: float
    """How long it may take while others wait."""


class Watch:
    """A thread that looks at the calls under way.

    Args:
        limit_seconds: how long a peer may take to move LEAST_BYTES, or the rest if that is less.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._turns: dict[grpc.ServicerContext, Turn] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pressed_until = 0.0
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

    def press(self) -> None:
        """Say that somebody has to wait for what the calls under way hold."""
        self._pressed_until = time.monotonic() + _PRESSURE_SECONDS
        self._wake.set()

    def first(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Return a call's first message; None when there is none."""
        with self.turn(context, SHORT_PATIENCE_SECONDS):
            return next(parts, None)

    def receive(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Return the further messages of a call; the peer's turn is while the next one is awaited."""
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
        """Return the messages of an answer; the peer's turn is while one waits to be taken."""
        allowance = Allowance(self._limit_seconds)
        for message in messages:
            began = self._begin(context, allowance.left_seconds)
            try:
                yield message
            finally:
                self.end(context)
            allowance.spend(time.monotonic() - began, len(message) if isinstance(message, bytes) else 0)

    def leave(self, context: grpc.ServicerContext, nbytes: int) -> None:
        """Begin the last turn of a call: its peer takes an answer of so many bytes. It ends with the call."""
        self._begin(context, self._limit_seconds * (1 + nbytes // LEAST_BYTES))

    @contextlib.contextmanager
    def turn(self, context: grpc.ServicerContext, patience_seconds: float) -> Iterator[None]:
        """Have the body be a turn of the peer, which may take so long while others wait."""
        self._begin(context, self._limit_seconds, patience_seconds)
        try:
            yield
        finally:
            self.end(context)

    def end(self, context: grpc.ServicerContext) -> None:
        """End a turn, if one is under way."""
        with self._lock:
            self._turns.pop(context, None)

    def _begin(
        self, context: grpc.ServicerContext, seconds: float, patience_seconds: float = LONG_PATIENCE_SECONDS
    ) -> float:
        """Begin a turn of the peer; return the time."""
        now = time.monotonic()
        with self._lock:
            self._turns[context] = Turn(now, now + seconds, patience_seconds)
        return now

    def _run(self) -> None:
        pause = self._limit_seconds / _LOOKS_PER_LIMIT
        while not self._stopped.is_set():
            if self._is_pressed():  # one look after the other, so that those who are ended make room meanwhile
                self._stopped.wait(min(pause, _LOOK_UNDER_PRESSURE_SECONDS))
            else:
                self._wake.wait(pause)
            self._wake.clear()
            for context in self._overdue():
                _log.warning("a call of %s kept the server waiting for too long: ended", context.peer())
                context.cancel()  # type: ignore[no-untyped-call]  # so says the stub

    def _is_pressed(self) -> bool:
        return time.monotonic() < self._pressed_until

    def _overdue(self) -> list[grpc.ServicerContext]:
        """Return the calls to end: all whose time is up, and under pressure those that ask for most patience."""
        now = time.monotonic()
        with self._lock:
            turns = list(self._turns.items())
        overdue = [context for context, turn in turns if turn.due < now]
        if overdue or not self._is_pressed():
            return overdue
        slow = [(turn, context) for context, turn in turns if now - turn.began > turn.patience_seconds]
        silent = [context for turn, context in slow if turn.patience_seconds < LONG_PATIENCE_SECONDS]
        return silent or [context for _, context in sorted(slow, key=lambda item: item[0].began)[:1]]
