"""The sum of squares of a plan's gradients, in one read of them. Imports Numba.

Sums of floating-point numbers depend on their order, so the order is fixed, whatever the threads: every array is cut
into blocks of BLOCK elements; within a block element i is added to lane i % LANES; then the lanes are added one after
the other, and so are the blocks. Squares and sums are float64: no float32 can overflow them. Where the squares of
float64 gradients do, or lose digits, `look_again` sums those of scaled ones in the same order.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.cpu.kernels.compile import bind, inline, kernel, parallel_kernel
from numba_adam.cpu.kernels.formats import Source, opened
from numba_adam.cpu.kernels.intrinsics import LANES, enter_ieee, lane_squares, leave_ieee, settled
from numba_adam.cpu.kernels.job import BLOCK, unpack
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.norm import measured
from numba_adam.numerics.operations import product

_measured = inline(bind(measured, product=inline(product)))


@inline
def _sum_block(values, lanes):  # type: ignore[no-untyped-def]
    """Return the sum of squares of an array's elements; `lanes` is room for the lanes' sums."""
    rounds = values.size // LANES
    lane_squares(np.uint64(values.ctypes.data), np.uint64(rounds), values, np.uint64(lanes.ctypes.data))
    for i in range(rounds * LANES, values.size):
        value = np.float64(values[i])
        lanes[i - rounds * LANES] += value * value
    total = lanes[0]
    for lane in range(1, LANES):
        total += lanes[lane]
    return total


@inline
def _scaled(values, scale, room, largest):  # type: ignore[no-untyped-def]
    """Return a block's elements as float64, multiplied by `scale` in `room`, and the largest magnitude so far."""
    target = room[: values.size]
    for i in range(values.size):
        value = np.float64(values[i])
        largest = max(largest, abs(value))
        target[i] = value * scale
    return target, largest


@inline
def _block_of(job, k, block, room):  # type: ignore[no-untyped-def]
    """Return the elements of a block, which is one of array k's."""
    row = job.rows[k]
    start = (block - job.blocks[k]) * BLOCK
    size = min(BLOCK, job.lengths[row] - start)
    source = Source(job.grads[row], np.uint64(0), job.grad_formats[row], False, np.uint32(0))
    return opened(source, np.uint64(start), np.uint64(size), np.uint64(room.ctypes.data), job.constants)


@inline
def _sum_blocks(job, count, begin, end, sums):  # type: ignore[no-untyped-def]
    """Fill `sums` from block `begin` to block `end`, counted over all arrays of the plan."""
    before = enter_ieee()
    lanes = np.empty(LANES)
    room = np.empty(BLOCK, job.constants.dtype)
    first = job.blocks[: count + 1]
    k = count_below(first, begin + 1) - 1
    for block in range(begin, end):
        while first[k + 1] <= block:
            k += 1
        sums[block] = _sum_block(_block_of(job, k, block, room), lanes)
    leave_ieee(before)


@inline
def _in_order(sums):  # type: ignore[no-untyped-def]
    """Return the sum, element by element."""
    total = 0.0
    for value in sums:
        total += value
    return total


@inline
def _total(sums):  # type: ignore[no-untyped-def]
    """Return the blocks' sum."""
    before = enter_ieee()
    total = settled(_in_order(sums))
    leave_ieee(before)
    return total


@kernel
def sum_of_squares_serial(places, like, count):  # type: ignore[no-untyped-def]
    """Return the sum of squares of the gradients of a plan, read on the calling thread.

    Args:
        places: from `job.pack`.
        like: any array of the dtype in which is computed.
        count: how many arrays the plan holds.
    """
    job = unpack(places, like)
    sums = np.empty(job.blocks[count])
    _sum_blocks(job, count, 0, sums.size, sums)
    return _total(sums)


@parallel_kernel
def sum_of_squares_parallel(places, like, count, tasks):  # type: ignore[no-untyped-def]
    """Return the sum of squares, read on `tasks` threads. Arguments as for `sum_of_squares_serial`."""
    sums = np.empty(unpack(places, like).blocks[count])
    share = (sums.size + tasks - 1) // tasks
    for task in prange(tasks):
        begin, end = min(sums.size, task * share), min(sums.size, (task + 1) * share)
        _sum_blocks(unpack(places, like), count, begin, end, sums)
    return _total(sums)


@kernel
def look_again(places, like, count, scale):  # type: ignore[no-untyped-def]
    """Return the sum of squares of the gradients of a plan, each multiplied by `scale`, and their largest magnitude.

    For the few steps that need either, so on the calling thread. The largest magnitude is that of numbers; a NaN or an
    infinity among them makes the sum one.

    Args:
        places: from `job.pack`.
        like: any array of the dtype in which is computed.
        count: how many arrays the plan holds.
        scale: float64, a power of two.
    """
    before = enter_ieee()
    job = unpack(places, like)
    lanes, room, doubles = np.empty(LANES), np.empty(BLOCK, like.dtype), np.empty(BLOCK)
    largest, total, factor, k = 0.0, 0.0, settled(scale), 0
    for block in range(job.blocks[count]):
        while job.blocks[k + 1] <= block:
            k += 1
        scaled, largest = _scaled(_block_of(job, k, block, room), factor, doubles, largest)
        total += _sum_block(scaled, lanes)
    total = settled(total)
    leave_ieee(before)
    return total, largest


@kernel
def unscaled(factor, loss_scale):  # type: ignore[no-untyped-def]
    """Return the factor that takes the loss scale out too. Compiled, so that it is rounded as the rest is."""
    before = enter_ieee()
    quotient = settled(settled(factor) / settled(loss_scale))
    leave_ieee(before)
    return quotient


@kernel
def measure(sums_of_squares, factor, max_norm, scale):  # type: ignore[no-untyped-def]
    """Return what `numerics.norm.measured` says of the sums' sum. Compiled, so that it is rounded as the rest is."""
    before = enter_ieee()
    norm, clipped = _measured(_in_order(sums_of_squares), settled(factor), settled(max_norm), settled(scale))
    norm, clipped = settled(norm), settled(clipped)
    leave_ieee(before)
    return norm, clipped
