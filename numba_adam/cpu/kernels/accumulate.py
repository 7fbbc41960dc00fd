"""Gradients of micro-batches added to sums, block by block. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.formats import Operand, decoded
from numba_adam.cpu.kernels.intrinsics import array_at, buffer, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.launch_plan import unpack
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.norm import SUM_BLOCK


@inline
def _add(total, values):  # type: ignore[no-untyped-def]
    for i in range(total.size):
        total[i] = total[i] + values[i]


@inline
def _add_blocks(plan, count, begin, end, sums):  # type: ignore[no-untyped-def]
    """Add the gradients from block `begin` to block `end`, counted over all arrays of the plan."""
    environment = enter_ieee()
    like = plan.constants
    scratch = buffer(SUM_BLOCK, like)
    first = plan.blocks
    k = count_below(first, count + 1, begin + 1) - 1
    for block in range(begin, end):
        while first[k + 1] <= block:
            k += 1
        row, start = plan.rows[k], np.uint64((block - first[k]) * SUM_BLOCK)
        size = np.uint64(min(SUM_BLOCK, plan.lengths[row] - np.int64(start)))
        grad = Operand(plan.grads[row], np.uint64(0), plan.grad_formats[row], False, np.uint32(0))
        values = decoded(grad, start, size, np.uint64(scratch.ctypes.data), like)
        _add(array_at(sums[row] + start * np.uint64(like.itemsize), size, like), values)
    leave_ieee(environment)


@kernel
def accumulate(packed, like, sums, count, task, tasks):  # type: ignore[no-untyped-def]
    """Add one share of a plan's gradients to sums. See `threads.launch` for the arguments.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        sums: (n,) uint64: the address of each array's sum, of the compute dtype.
        count: number of arrays in the plan.
        task: which share.
        tasks: number of shares.
    """
    plan = unpack(packed, like)
    blocks = plan.blocks[count]
    share = (blocks + tasks - 1) // tasks
    _add_blocks(plan, count, min(blocks, task * share), min(blocks, (task + 1) * share), sums)
