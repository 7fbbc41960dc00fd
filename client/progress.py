"""Progress of long calls: passed to a callable, or drawn on a terminal. May import the standard library and `tell`."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from numba_adam.telling import tell

_log = logging.getLogger("numba_adam")

Progress = Callable[[int, int], None]
"""Takes the bytes done and the total bytes."""

_QUIET_SECONDS = 2.0
_REDRAW_SECONDS = 0.1


class TerminalLine:
    """Draws one line for a transfer that takes longer than two seconds."""

    def __init__(self, what: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._stream, self._clock = what, stream, clock
        self._begin = clock()
        self._next_draw = self._begin + _QUIET_SECONDS
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Draw if the last drawing is old enough, and end the line when the transfer is complete."""
        now = self._clock()
        if done < total and now < self._next_draw:
            return
        if done < total or self._drawn:
            self._draw(done, total, now)
        if done == total and self._drawn:
            self._stream.write("\n")
        self._stream.flush()

    def _draw(self, done: int, total: int, now: float) -> None:
        self._next_draw, self._drawn = now + _REDRAW_SECONDS, True
        rate = done / 1e6 / max(now - self._begin, 1e-9)
        share = 100 * done // max(total, 1)
        self._stream.write(f"\r{self._what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB ({share} %), {rate:.0f} MB/s ")


def silent(done: int, total: int) -> None:
    """Ignore a progress report."""


def reporter(setting: Progress | bool | None, what: str) -> Progress:
    """Return the callable that gets the progress of one transfer.

    Args:
        setting: a callable is returned unchanged. True: draw on stderr if it is a terminal. None or False: no reports.
        what: the name of the transfer in the drawn line.
    """
    if callable(setting):
        return setting
    if setting and sys.stderr.isatty():
        return TerminalLine(what, sys.stderr)
    return silent


class Reason:
    """Says once why a call takes longer than a second: a context around the call.

    Args:
        ask: returns the reason, or an empty string if there is none yet. It is called by another thread, every second
            until it returns a reason. Its exceptions count as no reason.
        after_seconds: the time before each call of `ask`.
    """

    def __init__(self, ask: Callable[[], str], after_seconds: float = 1.0) -> None:
        self._ask, self._after_seconds = ask, after_seconds
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        arguments = (self._ask, self._is_over, self._after_seconds)
        threading.Thread(target=_wait, args=arguments, name="numba-adam-reason", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()

    def __del__(self) -> None:
        """End the thread, which does not refer to this object: an interrupt may come before `with`, or in its end."""
        self._is_over.set()


def _wait(ask: Callable[[], str], is_over: threading.Event, after_seconds: float) -> None:
    """Ask for the reason until there is one, or the call is over."""
    while not is_over.wait(after_seconds):
        try:
            reason = ask()
        except Exception as error:
            _log.debug("no reason is known: %s", error)
            continue
        if reason and not is_over.is_set():
            tell(reason)
            return
