"""The update on a GPU, of arrays whose moments are floats.

A thread takes a group of neighbouring elements at a time, as many as it has lanes: it asks for all of their columns by
loads of 16 bytes before it waits for any, computes, and stores. Groups begin where the columns lie at multiples of 16
bytes; at an array's ends, and where the columns are never aligned together, elements move one by one. An element's new
value depends on nothing but that element, so neither matters for the bits.
"""

from __future__ import annotations

import functools
from typing import Any

from numba_adam.cuda.kernels import eight_bit, grid
from numba_adam.cuda.kernels.grid import Kernels
from numba_adam.cuda.kernels.layout import EIGHT_BIT, Layout
from numba_adam.cuda.kernels.mathematics import mathematics

# What `bind` fills in for a layout.
_moments: Any = None
_largest: Any = None
_adapt: Any = None
_average: Any = None
_update_lane: Any = None
_load_group: Any = None
_load_element: Any = None
_store_group: Any = None
_store_element: Any = None
_decode_group: Any = None
_encode_group: Any = None
_HAS_MAX = _HAS_EMA = _ZERO_GRAD = False
_LANES = 8


def lane(reals, k, c):  # type: ignore[no-untyped-def]
    """Update one of the elements at work."""
    exp_avg, exp_avg_sq = _moments(reals.param[k], reals.grad[k], reals.exp_avg[k], reals.exp_avg_sq[k], c)
    reals.exp_avg[k] = exp_avg
    reals.exp_avg_sq[k] = exp_avg_sq
    terrain = exp_avg_sq
    if _HAS_MAX:
        terrain = _largest(reals.max_exp_avg_sq[k], exp_avg_sq)
        reals.max_exp_avg_sq[k] = terrain
    param = _adapt(reals.param[k], exp_avg, terrain, c)
    reals.param[k] = param
    if _HAS_EMA:
        reals.ema[k] = _average(reals.ema[k], param, c)
    if _ZERO_GRAD:
        reals.grad[k] = c.zero


def group(place, index, bounds, is_wide, work):  # type: ignore[no-untyped-def]
    """Update the group whose first lane is element `index`, or those of its elements that lie within the bounds."""
    reals, codes, c, keys = work
    begin, end = bounds
    if is_wide:
        _load_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if begin <= index + k < end:
                _load_element(place, index + k, k, reals, codes)
    _decode_group(reals, codes)
    for k in range(_LANES):
        if is_wide or begin <= index + k < end:
            _update_lane(reals, k, c)
    _encode_group(reals, codes, keys, index)
    if is_wide:
        _store_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if begin <= index + k < end:
                _store_element(place, index + k, k, reals, codes)


@functools.cache
def kernels(layout: Layout) -> Kernels:
    """Return the kernels for a layout. They are compiled at their first launch."""
    names = grid.basics(layout) | mathematics(layout)
    if EIGHT_BIT in (layout.exp_avg, layout.exp_avg_sq):
        names = eight_bit.pieces(grid.compiled(names, {"_update_lane": lane}))
    else:
        names = grid.compiled(names, {"_update_lane": lane, "_update_group": group})
    return grid.kernels(names, "update", layout)
