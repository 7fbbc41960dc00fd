"""How far a long transfer has come: told to a callable, or drawn on a terminal.

May import nothing but the standard library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[int, int], None]
"""Takes the bytes done and the bytes in all."""

_PATIENCE_SECONDS = 2.0
_REDRAW_SECONDS = 0.1


class TerminalLine:
    """Draws one line for a transfer that takes longer than two seconds."""

    def __init__(self, what: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._stream, self._clock = what, stream, clock
        self._begin = clock()
        self._next_draw = self._begin + _PATIENCE_SECONDS
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Draw if it is time to, and end the line when all is done."""
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
    """Take a report and do nothing."""


def reporter(setting: Progress | bool | None, what: str) -> Progress:
    """Return what to tell about one transfer.

    Args:
        setting: a callable, told as it is; True draws on stderr when that is a terminal; None or False: silence.
        what: what the line calls the transfer.
    """
    if callable(setting):
        return setting
    if setting and sys.stderr.isatty():
        return TerminalLine(what, sys.stderr)
    return silent
