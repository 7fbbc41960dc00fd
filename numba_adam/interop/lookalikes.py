"""Many gradients borrowed at once, where all are laid out as their parameters are: the usual case in a framework.

Borrowing one by one takes microseconds for each. May import NumPy and its neighbours here.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import compress
from typing import Any

from numba_adam.interop.arrays import Extents
from numba_adam.interop.dispatch import lender_of
from numba_adam.interop.lender import Lookalike
from numba_adam.numerics.array import Array

_OF_EMPTY = 64  # an aligned address that nothing reads


class Lookalikes:
    """The layouts of parameters of one kind, and the memory that no gradient may share."""

    def __init__(self, given: Sequence[object], params: Sequence[Array], extents: Extents) -> None:
        """Note the layouts.

        Args:
            given: the parameters as the caller gave them.
            params: views of them.
            extents: of all arrays that a step writes.
        """
        lenders = {lender_of(each) for each in given}
        lender = lenders.pop() if len(lenders) == 1 else None
        self._layouts: list[Lookalike] = []
        if lender is not None and lender.lookalikes is not None:
            self._layouts = lender.lookalikes(given)
            self._addresses = lender.addresses
        self._masks = [param.itemsize - 1 for param in params]  # of an aligned address these bits are zero
        self._sizes = [param.nbytes for param in params]
        self._extents = extents
        self._checked_last: list[int] | None = None  # addresses of all gradients that were found to be apart

    def addresses(self, grads: Sequence[Any]) -> list[int] | None:
        """Return the address of each gradient, 0 for None. Return None if they must be borrowed one by one."""
        if not self._layouts:
            return None
        present = [grad is not None for grad in grads]
        if all(present):
            return self._checked(grads, self._layouts, self._masks, self._sizes)
        columns = (grads, self._layouts, self._masks, self._sizes)
        found = self._checked(*(list(compress(column, present)) for column in columns))
        if found is None:
            return None
        left = iter(found)
        return [next(left) if is_present else 0 for is_present in present]

    def _checked(
        self, grads: Sequence[Any], layouts: list[Lookalike], masks: list[int], sizes: list[int]
    ) -> list[int] | None:
        found = self._addresses(grads, layouts)
        if found is None:
            return None
        if 0 in found:  # PyTorch gives an empty tensor no address, and 0 means that there is no gradient
            found = [address or _OF_EMPTY for address in found]
        if found == self._checked_last:
            return found
        if any(map(operator.and_, found, masks)) or not self._extents.are_apart(found, sizes):
            return None
        self._checked_last = found if len(found) == len(self._layouts) else None
        return found
