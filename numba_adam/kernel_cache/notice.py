"""Tells whoever waits that kernels are being compiled. Imports the standard library only."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import warnings
from pathlib import Path

_log = logging.getLogger("numba_adam")
_AFTER_SECONDS = 1.0
_QUIET = "NUMBA_ADAM_QUIET"


class Notice:
    """One line for each kind of kernels whose compilation takes longer than a second, all its kernels together.

    The line goes to stderr if that is a terminal, else to the log. A variable NUMBA_ADAM_QUIET that is not empty sends
    it to the log too, and so does a filter that ignores warnings, of `python -W ignore` or of the module `warnings`.
    Numba compiles one kernel at a time, so calls come one by one.

    Args:
        after_seconds: how long nothing is said.
    """

    def __init__(self, after_seconds: float = _AFTER_SECONDS) -> None:
        self._after_seconds = after_seconds
        self._spent: dict[str, float] = {}
        self._told: set[str] = set()
        self._began = 0.0
        self._timer: threading.Timer | None = None

    def begin(self, what: str, seconds: int, folder: Path | None) -> None:
        """Note that the compilation of a kernel begins.

        Args:
            what: the kind of the kernel.
            seconds: about how long all kernels of the kind take.
            folder: where they are kept; None: nowhere.
        """
        self._began = time.monotonic()
        if what in self._told:
            return
        left = max(0.0, self._after_seconds - self._spent.get(what, 0.0))
        self._timer = threading.Timer(left, self._tell, [what, seconds, folder])
        self._timer.daemon = True
        self._timer.start()

    def end(self, what: str) -> None:
        """Note that the compilation has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._spent[what] = self._spent.get(what, 0.0) + time.monotonic() - self._began

    def _tell(self, what: str, seconds: int, folder: Path | None) -> None:
        self._told.add(what)
        where = "in every process: no folder can keep them" if folder is None else f"once, some {seconds} s"
        line = f"compiling the {what} kernels {where}{'' if folder is None else f'; kept in {folder}'}"
        if _wants_it(line):
            sys.stderr.write(f"numba-adam: {line}\n")
            sys.stderr.flush()
        else:
            _log.info("%s", line)


def _wants_it(line: str) -> bool:
    """Say whether somebody reads stderr and has not asked for quiet."""
    is_quiet = bool(os.environ.get(_QUIET)) or _would_be_ignored(line)
    return not is_quiet and sys.stderr is not None and sys.stderr.isatty()


def _would_be_ignored(line: str) -> bool:
    """Say whether Python would ignore the line if it were a UserWarning of this package."""
    for action, message, category, module, number in warnings.filters:
        is_meant = issubclass(UserWarning, category) and number == 0
        if is_meant and _fits(message, line) and _fits(module, "numba_adam"):
            return action == "ignore"
    return False


def _fits(pattern: str | re.Pattern[str] | None, text: str) -> bool:
    """Say whether a text fits a pattern of a filter; None fits every text."""
    return pattern is None or re.match(pattern, text) is not None
