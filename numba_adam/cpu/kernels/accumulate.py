"""Gradients added to sums that are kept for later, block by block. Imports Numba."""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.cpu.kernels.compile import inline, kernel, parallel_kernel
from numba_adam.cpu.kernels.formats import Source, opened
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.job import BLOCK, unpack
from numba_adam.cpu.kernels.search import count_below


@inline
def _add(total, values):  # type: ignore[no-untyped-def]
    for i in range(total.size):
        total[i] = total[i] + values[i]


@inline
def _add_blocks(job, count, begin, end, sums):  # type: ignore[no-untyped-def]
    """Add the gradients from block `begin` to block `end`, counted over all arrays of the plan."""
    before = enter_ieee()
    like = job.constants
    room = np.empty(BLOCK, like.dtype)
    first = job.blocks[: count + 1]
    k = count_below(first, begin + 1) - 1
    for block in range(begin, end):
        while first[k + 1] <= block:
            k += 1
        row, start = job.rows[k], np.uint64((block - first[k]) * BLOCK)
        size = np.uint64(min(BLOCK, job.lengths[row] - np.int64(start)))
        source = Source(job.grads[row], np.uint64(0), job.grad_formats[row], False, np.uint32(0))
        values = opened(source, start, size, np.uint64(room.ctypes.data), like)
        _add(array_at(sums[row] + start * np.uint64(like.itemsize), size, like), values)
    leave_ieee(before)


@kernel
def accumulate_serial(places, like, sums, count):  # type: ignore[no-untyped-def]
    """Add a plan's gradients to sums, on the calling thread.

    Args:
        places: from `job.pack`.
        like: any array of the dtype in which is computed.
        sums: (n,) uint64: where each array's sum lies, of that dtype.
        count: how many arrays the plan holds.
    """
    job = unpack(places, like)
    _add_blocks(job, count, 0, job.blocks[count], sums)


@parallel_kernel
def accumulate_parallel(places, like, sums, count, tasks):  # type: ignore[no-untyped-def]
    """Add the gradients on `tasks` threads. Arguments as for `accumulate_serial`."""
    blocks = unpack(places, like).blocks[count]
    share = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        begin, end = min(blocks, task * share), min(blocks, (task + 1) * share)
        _add_blocks(unpack(places, like), count, begin, end, sums)
