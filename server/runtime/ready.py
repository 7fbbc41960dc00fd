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
_ready: set[str] = set()


def make_ready(dtype: str) -> None:
    """Compile or load the kernels of models of a dtype, unless this process has done so; the log says how long it took.

    Args:
        dtype: "float32" or "float64".
    """
    with _lock:
        if dtype in _ready:
            return
        start = time.monotonic()
        ahead.make_ready(dtype)
        _ready.add(dtype)
        _log.info("kernels for models of %s: ready after %.1f s", dtype, time.monotonic() - start)
