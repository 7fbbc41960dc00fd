"""The update of many arrays in one launch, however many there are and wherever they lie. Imports Numba.

The kernels here take arrays that all have the compute dtype, and do nothing besides the update but clear gradients;
`mixed_formats` has the kernels for everything else. The new value of an element depends on that element alone: neither
the number of threads nor the borders between them can change a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels.compile import kernel, merged
from numba_adam.cpu.kernels.element import adam, adam_bare, amsgrad, clear, is_bare
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.lanes import lanes_of
from numba_adam.cpu.kernels.launch_plan import EXP_AVG, EXP_AVG_SQ, IS_LARGE, MAX_EXP_AVG_SQ, PARAM, ZERO_GRAD, unpack
from numba_adam.cpu.kernels.prefetch import prefetched_of
from numba_adam.cpu.kernels.ranges import TILE, count_steps, cut, range_updater
from numba_adam.cpu.kernels.tasks import is_last


@merged
def _operands(plan, row, begin, size):  # type: ignore[no-untyped-def]
    """Return `size` elements of the parameter, gradient and moments of one array, from element `begin` on."""
    like, addresses = plan.constants, plan.addresses[row]
    skip, count = np.uint64(begin) * np.uint64(like.itemsize), np.uint64(size)
    param = array_at(addresses[PARAM] + skip, count, like)
    grad = array_at(plan.grads[row] + skip, count, like)
    exp_avg = array_at(addresses[EXP_AVG] + skip, count, like)
    return param, grad, exp_avg, array_at(addresses[EXP_AVG_SQ] + skip, count, like)


@merged
def _update_tile(plan, row, begin, size, prefetched, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    param, grad, exp_avg, exp_avg_sq = _operands(plan, row, begin, size)
    largest = plan.addresses[row, MAX_EXP_AVG_SQ]
    if largest == 0 and is_bare(c):
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, prefetched, lanes_of(param), c)
    elif largest == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        skip = np.uint64(begin) * np.uint64(param.itemsize)
        amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(largest + skip, np.uint64(size), param), c)
    if plan.options[ZERO_GRAD]:
        clear(grad)


@merged
def _update_bare_tile(plan, row, begin, size, prefetched, c):  # type: ignore[no-untyped-def]
    """The same in a step that `is_bare`, without AMSGrad."""
    param, grad, exp_avg, exp_avg_sq = _operands(plan, row, begin, size)
    adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, prefetched, lanes_of(param), c)
    if plan.options[ZERO_GRAD]:
        clear(grad)


def _part_updater(update_tile: Any) -> Any:
    """Return a function that updates a part of one array; see `ranges.range_updater`."""

    @merged
    def update_part(plan, row, step, begin, size, c):  # type: ignore[no-untyped-def]
        """Update `size` elements of one array, from element `begin` on; in tiles, if it also clears the gradient."""
        tile = TILE if plan.options[ZERO_GRAD] or size < 1 else size
        for start in range(begin, begin + size, tile):
            rest = begin + size - start
            count = tile if tile < rest else rest
            update_tile(plan, row, start, count, prefetched_of(count, rest) if plan.options[IS_LARGE] else 0, c)

    return update_part


_update_range = range_updater(_part_updater(_update_tile))
_update_bare_range = range_updater(_part_updater(_update_bare_tile))


# The entry points below stand in `mixed_formats` once more. A function could build all as closures, but Numba's cache
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


@kernel
def update_bare(packed, like, steps, count, task, tasks):  # type: ignore[no-untyped-def]
    """The same in a step that `is_bare`, without AMSGrad: most steps compile no more than this."""
    plan = unpack(packed, like)
    if task < tasks:
        _update_bare_range(plan, count, steps, cut(plan, count, task, tasks), cut(plan, count, task + 1, tasks))
    if is_last(task, tasks):
        count_steps(plan, count, steps)
