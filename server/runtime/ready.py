"""The compiled kernels that models need: compiled, or loaded, before a push has to wait for them.

Imports the library's kernels.
"""

from __future__ import annotations

import logging
import threading
import time

from numba_adam.cpu import ahead

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_ready: set[tuple[str, bool]] = set()
_in_progress: list[str] = []


def compiling() -> str:
    """Return the dtype whose kernels are being compiled or loaded now; empty if none are."""
    return "".join(_in_progress)


def make_ready(dtype: str, *, is_staged: bool = False) -> None:
    """Compile or load the kernels of models of a dtype, unless this process has done so; the log says how long it took.

    Args:
        dtype: "float32" or "float64".
        is_staged: whether their memory outlives the process.
    """
    with _lock:
        if (dtype, is_staged) in _ready:
            return
        start = time.monotonic()
        _in_progress.append(dtype)
        try:
            ahead.make_ready(dtype, is_staged=is_staged)
        finally:
            _in_progress.clear()
        _ready.add((dtype, is_staged))
        _log.info("kernels for models of %s: ready after %.1f s", dtype, time.monotonic() - start)
