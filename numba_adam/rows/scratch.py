"""The buffer in which a call sorts its rows, kept for the next call of the same thread."""

from __future__ import annotations

import threading

import numpy as np

from numba_adam.numerics.array import Array
from numba_adam.rows.kernels.grouping import SCRATCH

_MAX_KEPT = 1 << 21  # numbers of 64 bits that a thread keeps: 16 MB
_NONE = np.empty(0, dtype=np.int64)


class _Kept(threading.local):
    free: Array = _NONE


_kept = _Kept()


def take(positions: int, parts: int = 1, numbers: int = 0) -> Array:
    """Return a buffer for sorting so many positions in so many parts, and for so many numbers besides.

    It is the caller's alone until it is given back. New memory would take as long as the sort.
    """
    buffer, _kept.free = _kept.free, _NONE
    size = numbers + SCRATCH * positions + parts
    return buffer if size <= buffer.size else np.empty(size, dtype=np.int64)


def give_back(buffer: Array) -> None:
    """Keep a buffer for this thread's next call, unless it is large."""
    _kept.free = buffer if buffer.size <= _MAX_KEPT else _NONE
