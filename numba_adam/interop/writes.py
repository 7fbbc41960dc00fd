"""Arrays whose framework counts the writes to them, as PyTorch does: it is told of ours.

PyTorch refuses a backward pass that needs values which were overwritten since. It sees its own writes alone.
May import NumPy and its neighbours here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from numba_adam.interop.dispatch import lender_of


class CountedWrites:
    """Those of some arrays whose framework counts the writes to them: found once, told after every write."""

    def __init__(self, arrays: Iterable[object]) -> None:
        """Find them; None, and arrays of other kinds, are passed over."""
        self.kinds: dict[Callable[[Sequence[Any]], None], list[tuple[int, object]]] = {}
        for place, array in enumerate(arrays):
            count = None if array is None else lender_of(array).count_writes
            if count is not None:
                self.kinds.setdefault(count, []).append((place, array))

    def count(self, grads: Sequence[object]) -> None:
        """Count a write to every array that has a gradient.

        Args:
            grads: one for each of the arrays; None where there is no gradient, so that nothing was written.
        """
        for count, pairs in self.kinds.items():
            if written := [array for place, array in pairs if grads[place] is not None]:
                count(written)


def count_writes(arrays: Sequence[object]) -> None:
    """Count a write to every array whose framework counts them; None, and arrays of other kinds, are passed over."""
    others = [array for array in arrays if array is not None and type(array) is not np.ndarray]
    if others:
        CountedWrites(others).count(others)
