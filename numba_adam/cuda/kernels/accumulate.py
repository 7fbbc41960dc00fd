"""Gradients added to sums on a GPU: the update's ways through memory, with another thing done on the way."""

from __future__ import annotations

import functools

from numba_adam.cuda.kernels import grid, update
from numba_adam.cuda.kernels.grid import Kernels
from numba_adam.cuda.kernels.layout import Layout


def _add(reals, k, c):  # type: ignore[no-untyped-def]
    """Add one of the gradients at work to its sum, which has the parameter's place."""
    reals.param[k] = reals.param[k] + reals.grad[k]


def layout(real: str, grad: str) -> Layout:
    """Return the layout of sums in `real`, "float32" or "float64", of gradients of a format."""
    return Layout(param=real, grad=grad, exp_avg="", exp_avg_sq="")


@functools.cache
def kernels(layout: Layout) -> Kernels:
    """Return the kernels that add; their arguments are those of the update's. They compile at their first launch."""
    names = grid.compiled(grid.basics(layout), {"_update_lane": _add, "_update_group": update.group})
    return grid.kernels(names, "accumulate", layout)
