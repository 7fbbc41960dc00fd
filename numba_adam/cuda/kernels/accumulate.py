"""Adds gradients to sums on a GPU, with the update's memory access and one addition per element."""

from __future__ import annotations

import functools
from typing import Any

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import grid
from numba_adam.cuda.kernels.grid import Kernels
from numba_adam.cuda.kernels.layout import Layout


def layout(real: str, grad: str) -> Layout:
    """Return the layout of sums in `real`, "float32" or "float64", of gradients of a format."""
    return Layout(param=real, grad=grad, exp_avg="", exp_avg_sq="")


@functools.cache
def kernels(layout: Layout) -> Kernels:
    """Return the kernels that add; they take the update's arguments. Each is compiled at its first launch."""
    return Kernels(_flat(layout), _table(layout))


@seam.kernel_builder("accumulate-flat")
def _flat(layout: Layout) -> Any:
    return grid.flat(layout, grid.span(layout, _add_lane))


@seam.kernel_builder("accumulate-table")
def _table(layout: Layout) -> Any:
    return grid.table(layout, grid.span(layout, _add_lane))


@seam.device
def _add_lane(reals, k, c):  # type: ignore[no-untyped-def]
    """Add a gradient in registers to its sum, which is in the parameter's column."""
    reals.param[k] = reals.param[k] + reals.grad[k]
