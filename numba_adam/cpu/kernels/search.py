"""Binary search in an ascending array. Imports Numba.

NumPy's searchsorted would do, but compiling Numba's version of it takes most of a second in every first process.
"""

from __future__ import annotations

from numba_adam.cpu.kernels.compile import inline


@inline
def count_below(ascending, value):  # type: ignore[no-untyped-def]
    """Return how many elements are smaller than `value`."""
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
