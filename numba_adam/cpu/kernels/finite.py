"""The first element of an array that cannot be taken: not finite, or too large. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import kernel

_BLOCK = 4096  # elements: long enough for vector code, short enough to stop early


@kernel
def first_beyond(flat, limit):  # type: ignore[no-untyped-def]
    """Return the index of the first NaN or magnitude from `limit` on of a one-dimensional array, -1 without one.

    Args:
        flat: the array.
        limit: of its dtype, infinity for any finite element to pass.
    """
    size = flat.size
    for begin in range(0, size, _BLOCK):
        end = min(size, begin + _BLOCK)
        bad = 0
        for i in range(np.uint64(begin), np.uint64(end)):
            bad += not abs(flat[i]) < limit
        if bad:
            for i in range(begin, end):
                if not abs(flat[i]) < limit:
                    return i
    return -1
