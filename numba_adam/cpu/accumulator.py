"""Gradients of several micro-batches, summed until a step is made with them. Knows no kernel. May import NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.array import Array


class CpuAccumulator:
    """The sums of some parameters' gradients, in the compute dtype; fulfils `contract.Accumulator`."""

    def __init__(self, params: Sequence[Array], dtype: str, axes: Sequence[Axes | None]) -> None:
        """Allocate the sums, zero everywhere.

        Args:
            params: the parameters, their axes in C order.
            dtype: of the sums.
            axes: the order in memory of the axes of each gradient.
        """
        self._sums: list[Array] = [
            as_given(np.zeros(param.shape, dtype), order) for param, order in zip(params, axes, strict=True)
        ]
        self.addresses = np.array([array.ctypes.data for array in self._sums], dtype=np.uint64)
        """(parameters,) uint64: the address of each sum."""

        self._have = [False] * len(self._sums)

    def note(self, grads: Sequence[Any]) -> None:
        """Note which parameters had a gradient."""
        self._have = [have or grad is not None for have, grad in zip(self._have, grads, strict=True)]

    def grads(self) -> list[Array | None]:
        """Return the sum of each parameter's gradients, the arrays themselves; None where it had none."""
        return [array if have else None for array, have in zip(self._sums, self._have, strict=True)]

    def restore(self, grads: Sequence[Array | None]) -> None:
        """Take over the sums that `grads` of another accumulator returned."""
        for own, grad in zip(self._sums, grads, strict=True):
            if grad is not None:
                np.copyto(own, grad)
        self.note(grads)

    def reset(self, *, are_zero: bool) -> None:
        """Forget which parameters had a gradient. Set the sums to zero, unless a step has done so."""
        for array, have in zip(self._sums, self._have, strict=True):
            if have and not are_zero:
                array.fill(0)
        self._have = [False] * len(self._sums)
