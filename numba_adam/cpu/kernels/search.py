"""Binary search in an ascending array. Imports Numba.

Not NumPy's searchsorted: Numba takes most of a second to compile its version in every process without a cache.
"""

from __future__ import annotations

from numba_adam.cpu.kernels.compile import inline


@inline
def count_below(ascending, size, value):  # type: ignore[no-untyped-def]
    """Return how many of the first `size` elements are smaller than `value`."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
