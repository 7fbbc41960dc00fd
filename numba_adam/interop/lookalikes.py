"""Many gradients borrowed at once, where all are laid out as their parameters are: the usual case in a framework.

Borrowing one by one takes microseconds for each. May import NumPy and its neighbours here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba_adam.interop.arrays import Extents
from numba_adam.interop.dispatch import lender_of
from numba_adam.interop.lender import Lookalike
from numba_adam.numerics.array import Array


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
        self._sizes = [param.nbytes for param in params]
        self._extents = extents

    def addresses(self, grads: Sequence[Any]) -> list[int] | None:
        """Return the address of each gradient, 0 for None. Return None if they must be borrowed one by one."""
        if not self._layouts:
            return None
        places = [place for place, grad in enumerate(grads) if grad is not None]
        if len(places) == len(grads):
            found = self._addresses(grads, self._layouts)
            sizes = self._sizes
        else:
            found = self._addresses([grads[place] for place in places], [self._layouts[place] for place in places])
            sizes = [self._sizes[place] for place in places]
        if found is None or not self._extents.are_apart(found, sizes):
            return None
        if len(places) == len(grads):
            return found
        spread = [0] * len(grads)
        for place, address in zip(places, found, strict=True):
            spread[place] = address
        return spread
