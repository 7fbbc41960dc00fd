"""The update over a table of arrays: one launch, however many arrays there are and wherever they lie. Imports Numba.

The table has a row for each array: where its param, grad, exp_avg, exp_avg_sq and max_exp_avg_sq lie. All arrays
together are one range of elements, `offsets` says where each begins, and the range is cut into one piece for each
thread, whatever the arrays' sizes. An element's new value depends on nothing but that element: neither the cuts nor
the number of threads can change a bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam import element
from numba_adam.folding import Constants
from numba_adam.kernels.compile import inline, kernel, parallel_kernel
from numba_adam.kernels.intrinsics import array_at, enter_ieee, leave_ieee

PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ = range(5)  # columns of the table
COLUMNS = 5
_CUT = 64  # elements: threads meet at whole cache lines where the arrays do

_update = inline(element.update)


@inline
def _adam(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array."""
    for i in range(param.size):
        param[i], exp_avg[i], exp_avg_sq[i], _ = _update(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c.zero, c)


@inline
def _amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array that keeps its largest second moment."""
    for i in range(param.size):
        param[i], exp_avg[i], exp_avg_sq[i], max_exp_avg_sq[i] = _update(
            param[i], grad[i], exp_avg[i], exp_avg_sq[i], max_exp_avg_sq[i], c
        )


@inline
def _constants(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by their names."""
    return Constants(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11])


@inline
def _update_part(row, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    skip = np.uint64(begin) * np.uint64(like.itemsize)
    count = np.uint64(size)
    param = array_at(row[PARAM] + skip, count, like)
    grad = array_at(row[GRAD] + skip, count, like)
    exp_avg = array_at(row[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(row[EXP_AVG_SQ] + skip, count, like)
    if row[MAX_EXP_AVG_SQ] == 0:
        _adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        _amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(row[MAX_EXP_AVG_SQ] + skip, count, like), c)


@inline
def _update_range(table, offsets, which, constants, begin, end):  # type: ignore[no-untyped-def]
    """Update the elements from `begin` to `end`, counted over all arrays."""
    before = enter_ieee()
    index = np.searchsorted(offsets, begin, side="right") - 1
    while begin < end:
        stop = min(end, offsets[index + 1])
        c = _constants(constants[which[index]])
        _update_part(table[index], begin - offsets[index], stop - begin, c, constants)
        begin = stop
        index += 1
    leave_ieee(before)


@kernel
def update_serial(table, offsets, which, constants):  # type: ignore[no-untyped-def]
    """Update every array of the table on the calling thread.

    Args:
        table: (arrays, COLUMNS) uint64: addresses; max_exp_avg_sq 0 where the array has none.
        offsets: (arrays + 1,) int64: where each array begins when all are counted through; the total last.
        which: (arrays,) int64: the row of `constants` that holds for each array.
        constants: (rows, 12) of the arrays' dtype: `folding.Constants`, field by field.
    """
    _update_range(table, offsets, which, constants, 0, offsets[-1])


@parallel_kernel
def update_parallel(table, offsets, which, constants, tasks):  # type: ignore[no-untyped-def]
    """Update every array of the table on `tasks` threads. Arguments as for `update_serial`."""
    total = offsets[-1]
    share = (total // tasks + _CUT) // _CUT * _CUT
    for task in prange(tasks):
        _update_range(table, offsets, which, constants, min(total, task * share), min(total, (task + 1) * share))
