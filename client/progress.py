"""Progress of long transfers: passed to a callable, or drawn on a terminal. May import the standard library only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

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
