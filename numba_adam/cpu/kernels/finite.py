"""The first element of an array that an update must not take: not finite, or too large. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import kernel

_PORTION = 4096  # elements: long enough for vector code, short enough to stop early


@kernel
def first_beyond(flat, limit):  # type: ignore[no-untyped-def]
    """Return the index of the first element that is NaN or whose magnitude is at least `limit`; -1 without one.

    Args:
        flat: a one-dimensional array.
        limit: of its dtype; infinity accepts every finite element.
    """
    size = flat.size
    for begin in range(0, size, _PORTION):
        end = min(size, begin + _PORTION)
        bad = 0
        for i in range(np.uint64(begin), np.uint64(end)):
            bad += not abs(flat[i]) < limit
        if bad:
            for i in range(begin, end):
                if not abs(flat[i]) < limit:
                    return i
    return -1
