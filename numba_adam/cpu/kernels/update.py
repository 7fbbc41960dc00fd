"""The update of many arrays in one launch, however many there are and wherever they lie. Imports Numba.

The kernel here takes arrays that all have the compute dtype, and does nothing besides the update but clear gradients;
`mixed_formats` has the kernel for everything else. The new value of an element depends on that element alone: neither
the number of threads nor the borders between them can change a bit.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import kernel, merged
from numba_adam.cpu.kernels.element import adam, adam_bare, amsgrad, clear, is_bare
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.launch_plan import EXP_AVG, EXP_AVG_SQ, IS_LARGE, MAX_EXP_AVG_SQ, PARAM, ZERO_GRAD, unpack
from numba_adam.cpu.kernels.prefetch import STRETCH, prefetchable
from numba_adam.cpu.kernels.ranges import TILE, count_steps, cut, range_updater
from numba_adam.cpu.kernels.tasks import is_last


@merged
def _update_tile(plan, row, begin, size, prefetched, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    like, addresses = plan.constants, plan.addresses[row]
    skip, count = np.uint64(begin) * np.uint64(like.itemsize), np.uint64(size)
    param = array_at(addresses[PARAM] + skip, count, like)
    grad = array_at(plan.grads[row] + skip, count, like)
    exp_avg = array_at(addresses[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(addresses[EXP_AVG_SQ] + skip, count, like)
    if addresses[MAX_EXP_AVG_SQ] == 0 and is_bare(c):
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, prefetched, c)
    elif addresses[MAX_EXP_AVG_SQ] == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(addresses[MAX_EXP_AVG_SQ] + skip, count, like), c)
    if plan.options[ZERO_GRAD]:
        clear(grad)


@merged
def _update_part(plan, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on; in tiles, if it also clears the gradient."""
    tile = TILE if plan.options[ZERO_GRAD] else max(size, 1)
    for start in range(begin, begin + size, tile):
        rest = begin + size - start
        count = min(tile, rest)
        prefetched = min(prefetchable(rest), count // STRETCH) if plan.options[IS_LARGE] else 0
        _update_tile(plan, row, start, count, prefetched, c)


_update_range = range_updater(_update_part)


# The entry point below stands in `mixed_formats` once more. A function could build both as closures, but Numba's cache
# pickles what a closure captures into the key of the file, and the pickle of a compiled function differs in every
# process: no other process would find the kernel.
@kernel
def update(packed, like, steps, count, task, tasks):  # type: ignore[no-untyped-def]
    """Update one share of the arrays of a plan. See `threads.launch` for the arguments.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        steps: (n,) int64: updates made so far; incremented after the last share.
        count: number of arrays in the plan.
        task: which share; `tasks`: increment the steps.
        tasks: number of shares.
    """
    plan = unpack(packed, like)
    if task < tasks:
        _update_range(plan, count, steps, cut(plan, count, task, tasks), cut(plan, count, task + 1, tasks))
    if is_last(task, tasks):
        count_steps(plan, count, steps)
