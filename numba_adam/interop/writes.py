"""Tells a framework about our writes to its arrays, if it counts writes, as PyTorch does.

PyTorch refuses a backward pass if a value that it needs was overwritten. It counts only its own writes.
May import NumPy and its neighbours here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from numba_adam.interop.dispatch import lender_of


class CountedWrites:
    """The arrays, out of a list, whose framework counts writes. Found once, counted after every write."""

    def __init__(self, arrays: Iterable[object]) -> None:
        """Find these arrays; skip None and arrays of other kinds."""
        self.kinds: dict[Callable[[Sequence[Any]], None], list[tuple[int, object]]] = {}
        for place, array in enumerate(arrays):
            count = None if array is None else lender_of(array).count_writes
            if count is not None:
                self.kinds.setdefault(count, []).append((place, array))

    def count(self, grads: Sequence[object]) -> None:
        """Count a write to every array that has a gradient.

        Args:
            grads: one for each array. None: the array has no gradient, so it was not written.
        """
        for count, pairs in self.kinds.items():
            if written := [array for place, array in pairs if grads[place] is not None]:
                count(written)


def count_writes(arrays: Sequence[object]) -> None:
    """Count a write to every array whose framework counts writes; skip None and arrays of other kinds."""
    others = [array for array in arrays if array is not None and type(array) is not np.ndarray]
    if others:
        CountedWrites(others).count(others)
