"""The update on a GPU.

A thread takes a group of neighbouring elements at a time, as many as it has lanes: it issues 16-byte loads for all of
their columns before it waits for any, computes, and stores. Groups begin where all columns are aligned to 16 bytes; at
an array's ends, and where the columns are never aligned together, elements move one by one. An element's new value
depends on nothing but that element, so neither matters for the bits.
"""

from __future__ import annotations

import functools
from typing import Any

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import eight_bit, grid
from numba_adam.cuda.kernels.grid import Kernels
from numba_adam.cuda.kernels.layout import EIGHT_BIT, Layout
from numba_adam.cuda.kernels.mathematics import mathematics


@functools.cache
def kernels(layout: Layout) -> Kernels:
    """Return the kernels for a layout. They are compiled at their first launch."""
    return Kernels(_flat(layout), _table(layout))


@seam.kernel_builder("update-flat")
def _flat(layout: Layout) -> Any:
    return grid.flat(layout, _span(layout))


@seam.kernel_builder("update-table")
def _table(layout: Layout) -> Any:
    return grid.table(layout, _span(layout))


def _span(layout: Layout) -> Any:
    has_eight_bit_moments = EIGHT_BIT in (layout.exp_avg, layout.exp_avg_sq)
    return (eight_bit.span if has_eight_bit_moments else grid.span)(layout, _lane(layout))


def _lane(layout: Layout) -> Any:
    moments, largest, adapt, average = mathematics(layout)
    has_max, has_ema, zero_grad = bool(layout.max_exp_avg_sq), bool(layout.ema), layout.zero_grad

    @seam.device
    def update_lane(reals, k, c):  # type: ignore[no-untyped-def]
        """Update one of the elements at work."""
        exp_avg, exp_avg_sq = moments(reals.param[k], reals.grad[k], reals.exp_avg[k], reals.exp_avg_sq[k], c)
        reals.exp_avg[k] = exp_avg
        reals.exp_avg_sq[k] = exp_avg_sq
        terrain = exp_avg_sq
        if has_max:
            terrain = largest(reals.max_exp_avg_sq[k], exp_avg_sq)
            reals.max_exp_avg_sq[k] = terrain
        param = adapt(reals.param[k], exp_avg, terrain, c)
        reals.param[k] = param
        if has_ema:
            reals.ema[k] = average(reals.ema[k], param, c)
        if zero_grad:
            reals.grad[k] = c.zero

    return update_lane
