"""Python's garbage collector, paused while a kernel compiles. Imports the standard library only.

A compilation makes millions of objects and keeps most of them, so the collector searches them in vain, again and again:
an eighth of the time. The pause is that of the whole process. It lasts for one kernel, a second or so.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pause:
    """The compilations that are under way, and what ends with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._was_enabled = False

    def begin(self) -> None:
        """Note a compilation; the first one pauses the collector."""
        with self._lock:
            if self._depth == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._depth += 1

    def end(self) -> None:
        """Note its end."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._was_enabled:
                gc.enable()

    def forget(self) -> None:
        """Forget all compilations: a forked child does not have the threads that they run on."""
        self._lock = threading.Lock()
        if self._depth and self._was_enabled:
            gc.enable()
        self._depth = 0


_pause = _Pause()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pause.forget)


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector for the block; one that the program has disabled stays disabled."""
    _pause.begin()
    try:
        yield
    finally:
        _pause.end()
