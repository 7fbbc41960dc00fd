"""The compiled kernels that models need: compiled, or loaded, before a push has to wait for them.

Imports the library's kernels, and the models.
"""

from __future__ import annotations

import logging
import threading
import time

from numba_adam.cpu import ahead
from numba_adam.numerics.formats import Format
from numba_adam.server.model.columns import is_plain
from numba_adam.server.model.options import NO_OPTIONS
from numba_adam.settings.options import Options

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_ready: set[tuple[str, bool, str]] = set()
_ready_to_clip: set[str] = set()
_in_progress: list[str] = []


def compiling() -> str:
    """Return the dtype whose kernels are being compiled or loaded now; empty if none are."""
    return "".join(_in_progress)


def make_ready_to_clip(dtype: str) -> None:
    """Compile or load what measures the gradients of models of a dtype, unless this process has done so."""
    with _lock:
        if dtype not in _ready_to_clip:
            ahead.make_ready_to_measure(dtype)
            _ready_to_clip.add(dtype)


def make_ready(dtype: str, *, is_staged: bool = False, options: Options = NO_OPTIONS) -> None:
    """Compile or load the kernels of models of a dtype, unless this process has done so; the log says how long it took.

    Args:
        dtype: "float32" or "float64".
        is_staged: whether their memory outlives the process.
        options: the formats of their state.
    """
    computed = "" if is_plain(options) else options.computed_in(Format.named(dtype))
    wanted = dtype, is_staged and not computed, computed  # one kernel updates state in all formats, at every level
    with _lock:
        if wanted in _ready:
            return
        start = time.monotonic()
        _in_progress.append(dtype)
        try:
            if computed:
                ahead.make_formats_ready(dtype, computed)
            else:
                ahead.make_ready(dtype, is_staged=is_staged)
        finally:
            _in_progress.clear()
        _ready.add(wanted)
        what = f"{dtype} with options" if computed else dtype
        _log.info("kernels for models of %s: ready after %.1f s", what, time.monotonic() - start)
