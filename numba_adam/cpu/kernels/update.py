"""The update of many arrays in one launch, however many there are and wherever they lie. Imports Numba.

The kernels here take arrays that all have the compute dtype, and do nothing besides the update; `mixed_formats` has the
kernels for everything else. The new value of an element depends on that element alone: neither the number of threads
nor the borders between them can change a bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.cpu.kernels.compile import kernel, merged, parallel_kernel
from numba_adam.cpu.kernels.element import adam, adam_bare, amsgrad, is_bare
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.launch_plan import EXP_AVG, EXP_AVG_SQ, IS_LARGE, MAX_EXP_AVG_SQ, PARAM, unpack
from numba_adam.cpu.kernels.prefetch import prefetchable
from numba_adam.cpu.kernels.ranges import count_steps, cut, range_updater


@merged
def _update_part(plan, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    like, addresses = plan.constants, plan.addresses[row]
    skip, count = np.uint64(begin) * np.uint64(like.itemsize), np.uint64(size)
    param = array_at(addresses[PARAM] + skip, count, like)
    grad = array_at(plan.grads[row] + skip, count, like)
    exp_avg = array_at(addresses[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(addresses[EXP_AVG_SQ] + skip, count, like)
    if addresses[MAX_EXP_AVG_SQ] == 0 and is_bare(c):
        prefetched = prefetchable(size) if plan.options[IS_LARGE] else 0
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, prefetched, c)
    elif addresses[MAX_EXP_AVG_SQ] == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(addresses[MAX_EXP_AVG_SQ] + skip, count, like), c)


_update_range = range_updater(_update_part)


# The two entry points below stand in `mixed_formats` once more. A function could build both pairs as closures, but
# Numba's cache pickles what a closure captures into the key of the file, and the pickle of a compiled function differs
# in every process: no other process would find the kernel.
@kernel
def update_serial(packed, like, steps, count):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on the calling thread.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        steps: (n,) int64: updates made so far; incremented.
        count: number of arrays in the plan.
    """
    plan = unpack(packed, like)
    _update_range(plan, count, steps, 0, plan.offsets[count])
    count_steps(plan, count, steps)


@parallel_kernel
def update_parallel(packed, like, steps, count, tasks):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on `tasks` threads. Arguments as for `update_serial`."""
    for task in prange(tasks):
        plan = unpack(packed, like)
        _update_range(plan, count, steps, cut(plan, count, task, tasks), cut(plan, count, task + 1, tasks))
    count_steps(unpack(packed, like), count, steps)
