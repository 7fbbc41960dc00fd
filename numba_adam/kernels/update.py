"""The update over a table of arrays: one launch, however many arrays there are and wherever they lie. Imports Numba.

The table has a row for each array: where its param, exp_avg, exp_avg_sq and max_exp_avg_sq lie. The plan says which
arrays have a gradient, and where. Their elements together are one range, which is cut into one piece for each
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

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ = range(4)  # columns of the table
COLUMNS = 4
_CUT = 64  # elements: threads meet at whole cache lines where the arrays do

_moments = inline(element.moments)
_largest = inline(element.largest)
_adapt = inline(element.adapt)


@inline
def _adam(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = _moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        param[i] = _adapt(param[i], exp_avg[i], exp_avg_sq[i], c)


@inline
def _amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array that keeps its largest second moment."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = _moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        max_exp_avg_sq[i] = _largest(max_exp_avg_sq[i], exp_avg_sq[i])
        param[i] = _adapt(param[i], exp_avg[i], max_exp_avg_sq[i], c)


@inline
def _constants(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by their names."""
    return Constants(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11])


@inline
def _update_part(row, grad_address, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    skip = np.uint64(begin) * np.uint64(like.itemsize)
    count = np.uint64(size)
    param = array_at(row[PARAM] + skip, count, like)
    grad = array_at(grad_address + skip, count, like)
    exp_avg = array_at(row[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(row[EXP_AVG_SQ] + skip, count, like)
    if row[MAX_EXP_AVG_SQ] == 0:
        _adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        _amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(row[MAX_EXP_AVG_SQ] + skip, count, like), c)


@inline
def _update_range(table, plan, count, begin, end):  # type: ignore[no-untyped-def]
    """Update the elements from `begin` to `end`, counted over all arrays of the plan."""
    before = enter_ieee()
    offsets = plan.offsets[: count + 1]
    k = np.searchsorted(offsets, begin, side="right") - 1
    while begin < end:
        stop = min(end, offsets[k + 1])
        row = plan.rows[k]
        c = _constants(plan.constants[plan.which[k]])
        _update_part(table[row], plan.grads[row], begin - offsets[k], stop - begin, c, plan.constants)
        begin = stop
        k += 1
    leave_ieee(before)


@inline
def _count_steps(plan, count, steps):  # type: ignore[no-untyped-def]
    """Count the update in the step of every array of the plan."""
    for k in range(count):
        steps[plan.rows[k]] += 1


@kernel
def update_serial(table, plan, count, steps):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on the calling thread.

    Args:
        table: (n, COLUMNS) uint64: addresses; max_exp_avg_sq 0 where the array has none.
        plan: a `prepare.Plan`.
        count: how many arrays it holds.
        steps: (n,) int64: updates made so far; counted up.
    """
    _update_range(table, plan, count, 0, plan.offsets[count])
    _count_steps(plan, count, steps)


@parallel_kernel
def update_parallel(table, plan, count, steps, tasks):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on `tasks` threads. Arguments as for `update_serial`."""
    total = plan.offsets[count]
    share = (total // tasks + _CUT) // _CUT * _CUT
    for task in prange(tasks):
        _update_range(table, plan, count, min(total, task * share), min(total, (task + 1) * share))
    _count_steps(plan, count, steps)
