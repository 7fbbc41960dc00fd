"""Gradients of several micro-batches, summed until a step is made of them. Knows no kernel. May import NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from numba_adam.errors import HyperparameterError, NamesError
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.array import Array

Accumulation = Literal["mean", "sum"]


class _WhatIsAccumulated:
    """The only object of its kind: what `step` is given when it is given no gradients; None is no gradient."""

    def __repr__(self) -> str:
        return "what is accumulated"


WHAT_IS_ACCUMULATED = _WhatIsAccumulated()


class Accumulated:
    """The sums of some parameters' gradients, in the dtype in which these are computed."""

    def __init__(self, params: Sequence[Array], dtype: str, axes: Sequence[Axes | None]) -> None:
        """Make room for them, with zeros.

        Args:
            params: the parameters, their axes in C order.
            dtype: that of the sums.
            axes: the order in memory of the axes of each gradient.
        """
        self.sums: list[Array] = [
            as_given(np.zeros(param.shape, dtype), order) for param, order in zip(params, axes, strict=True)
        ]
        self.addresses = np.array([array.ctypes.data for array in self.sums], dtype=np.uint64)
        self._have = [False] * len(self.sums)

    def note(self, grads: Sequence[Any]) -> None:
        """Note which parameters had a gradient."""
        self._have = [have or grad is not None for have, grad in zip(self._have, grads, strict=True)]

    def grads(self) -> list[Array | None]:
        """Return the sum of each parameter's gradients, None where it had none."""
        return [array if have else None for array, have in zip(self.sums, self._have, strict=True)]

    def begin_anew(self, are_zero: bool) -> None:
        """Forget which parameters had a gradient; set the sums to zero, unless a step has done so."""
        for array, have in zip(self.sums, self._have, strict=True):
            if have and not are_zero:
                array.fill(0)
        self._have = [False] * len(self.sums)


def check_accumulation(accumulation: object) -> None:
    """Refuse what is no kind of accumulation.

    Raises:
        HyperparameterError: it is neither "mean" nor "sum".
    """
    if not isinstance(accumulation, str) or accumulation not in ("mean", "sum"):
        raise HyperparameterError(f"accumulation={accumulation!r}: it must be 'mean' or 'sum'")


def factor(accumulation: Accumulation, count: int) -> float:
    """Return what the sum of `count` micro-batches is multiplied by.

    Raises:
        NamesError: there are no micro-batches.
    """
    if not count:
        raise NamesError("no gradients are given, and none were accumulated: step(grads), or accumulate(grads) before")
    return 1.0 / count if accumulation == "mean" else 1.0
