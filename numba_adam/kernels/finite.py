"""The first element of an array that is not finite. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.kernels.compile import kernel

_BLOCK = 4096  # elements: long enough for vector code, short enough to stop early


@kernel
def first_non_finite(flat):  # type: ignore[no-untyped-def]
    """Return the index of the first NaN or infinity of a one-dimensional array, -1 if every element is finite."""
    size = flat.size
    for begin in range(0, size, _BLOCK):
        end = min(size, begin + _BLOCK)
        bad = 0
        for i in range(np.uint64(begin), np.uint64(end)):
            bad += not np.isfinite(flat[i])
        if bad:
            for i in range(begin, end):
                if not np.isfinite(flat[i]):
                    return i
    return -1
