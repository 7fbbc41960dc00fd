"""Tells whoever waits that kernels are being compiled. Imports the standard library and `tell`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from numba_adam.telling import tell

_AFTER_SECONDS = 1.0


class Notice:
    """One line for each kind of kernels whose compilation takes longer than a second, all its kernels together.

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
        tell(line)
