"""The sum of squares of a plan's gradients, in one pass over them. Imports Numba.

A sum of floating-point numbers depends on the order, so the order is fixed, for any number of threads: see
`numerics.norm`. Squares and sums are float64, which no square of a float32 overflows. Where
the squares of float64 gradients overflow or lose digits, `sum_of_scaled_squares` sums those of scaled gradients in the
same order.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import array_inlined, inline, kernel
from numba_adam.cpu.kernels.formats import Operand, compute_format, decoded
from numba_adam.cpu.kernels.intrinsics import (
    array_at,
    buffer,
    enter_ieee,
    lane_squares,
    lane_squares_ahead,
    leave_ieee,
    settled,
)
from numba_adam.cpu.kernels.launch_plan import IS_LARGE, unpack
from numba_adam.cpu.kernels.search import count_below
from numba_adam.cpu.kernels.tasks import is_last
from numba_adam.numerics.bind import bind
from numba_adam.numerics.norm import SUM_BLOCK, SUM_LANES, measured
from numba_adam.numerics.operations import product

_FLOAT64 = np.empty(0)
_measured = inline(bind(measured, product=inline(product)))


@inline
def _sum_block(values, lanes, is_large):  # type: ignore[no-untyped-def]
    """Return the sum of squares of an array's elements.

    Args:
        values: the elements.
        lanes: (SUM_LANES,) float64, overwritten.
        is_large: whether the step is larger than the caches, so that a prefetch pays.
    """
    rounds = values.size // SUM_LANES
    begin, target = np.uint64(values.ctypes.data), np.uint64(lanes.ctypes.data)
    if is_large:
        lane_squares_ahead(begin, np.uint64(rounds), values, target)
    else:
        lane_squares(begin, np.uint64(rounds), values, target)
    for i in range(rounds * SUM_LANES, values.size):
        value = np.float64(values[i])
        lanes[i - rounds * SUM_LANES] += value * value
    total = lanes[0]
    for lane in range(1, SUM_LANES):
        total += lanes[lane]
    return total


@inline
def _scaled(values, scale, scratch, largest):  # type: ignore[no-untyped-def]
    """Return a block's elements as float64 times `scale`, in a scratch array, and the largest magnitude so far."""
    target = scratch[: values.size]
    for i in range(values.size):
        value = np.float64(values[i])
        largest = max(largest, abs(value))
        target[i] = value * scale
    return target, largest


@array_inlined
def _block_of(plan, k, block, scratch):  # type: ignore[no-untyped-def]
    """Return the elements of a block, which belongs to array k."""
    row = plan.rows[k]
    start = (block - plan.blocks[k]) * SUM_BLOCK
    rest = plan.lengths[row] - start
    begin, size = np.uint64(start), np.uint64(SUM_BLOCK if rest > SUM_BLOCK else rest)
    format_ = plan.grad_formats[row]
    if format_ == compute_format(scratch):  # as nearly always: a call of `decoded` takes longer than a small array
        return array_at(plan.grads[row] + begin * np.uint64(scratch.itemsize), size, scratch)
    grad = Operand(plan.grads[row], np.uint64(0), format_, False, np.uint32(0))
    return decoded(grad, begin, size, np.uint64(scratch.ctypes.data), scratch)


@inline
def _sum_blocks(plan, count, begin, end):  # type: ignore[no-untyped-def]
    """Sum block `begin` to block `end`, counted over all arrays of the plan."""
    environment = enter_ieee()
    lanes, scratch = buffer(SUM_LANES, _FLOAT64), buffer(SUM_BLOCK, plan.constants)
    first, sums = plan.blocks, plan.sums
    is_large = plan.options[IS_LARGE] != 0
    k = count_below(first, count + 1, begin + 1) - 1
    for block in range(begin, end):
        while first[k + 1] <= block:
            k += 1
        sums[1 + block] = _sum_block(_block_of(plan, k, block, scratch), lanes, is_large)
    leave_ieee(environment)


@inline
def _in_order(sums):  # type: ignore[no-untyped-def]
    """Return the sum, added in order."""
    total = 0.0
    for value in sums:
        total += value
    return total


@inline
def _total(sums):  # type: ignore[no-untyped-def]
    """Return the sum of the blocks' sums."""
    environment = enter_ieee()
    total = settled(_in_order(sums))
    leave_ieee(environment)
    return total


@kernel
def sum_of_squares(packed, like, rows, count, task, tasks):  # type: ignore[no-untyped-def]
    """Set `plan.sums[0]` to the sum of squares of the gradients of a plan. See `threads.launch` for the arguments.

    Each thread takes its shares from the last to the first: the update begins with the gradients that the caches still
    have, and the norm with those that the caller wrote last.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        rows: any array of 64-bit numbers.
        count: number of arrays in the plan.
        task: which share of the blocks to sum; `tasks`: sum the sums.
        tasks: number of shares.
    """
    plan = unpack(packed, like)
    blocks = plan.blocks[count]
    if task < tasks:
        share, turn = (blocks + tasks - 1) // tasks, tasks - 1 - task
        _sum_blocks(plan, count, min(blocks, turn * share), min(blocks, (turn + 1) * share))
    if is_last(task, tasks):
        plan.sums[0] = _total(plan.sums[1 : blocks + 1])


@kernel
def sum_of_scaled_squares(packed, like, count, scale):  # type: ignore[no-untyped-def]
    """Return the sum of squares of the gradients of a plan, each times `scale`, and their largest unscaled magnitude.

    Few steps need it, so it runs on the calling thread. The largest magnitude ignores NaN; then the sum is NaN.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        count: number of arrays in the plan.
        scale: float64, a power of two.
    """
    environment = enter_ieee()
    plan = unpack(packed, like)
    lanes, scratch, doubles = buffer(SUM_LANES, _FLOAT64), buffer(SUM_BLOCK, like), buffer(SUM_BLOCK, _FLOAT64)
    largest, total, factor, k = 0.0, 0.0, settled(scale), 0
    for block in range(plan.blocks[count]):
        while plan.blocks[k + 1] <= block:
            k += 1
        scaled, largest = _scaled(_block_of(plan, k, block, scratch), factor, doubles, largest)
        total += _sum_block(scaled, lanes, False)
    total = settled(total)
    leave_ieee(environment)
    return total, largest


@kernel
def unscaled(factor, loss_scale):  # type: ignore[no-untyped-def]
    """Return factor / loss_scale, rounded as IEEE 754 demands, whatever this thread's environment."""
    environment = enter_ieee()
    quotient = settled(settled(factor) / settled(loss_scale))
    leave_ieee(environment)
    return quotient


@kernel
def measure(sums_of_squares, factor, max_norm, scale):  # type: ignore[no-untyped-def]
    """Return `numerics.norm.measured` of the sum of some sums, rounded as IEEE 754 demands."""
    environment = enter_ieee()
    norm, clipped = _measured(_in_order(sums_of_squares), settled(factor), settled(max_norm), settled(scale))
    norm, clipped = settled(norm), settled(clipped)
    leave_ieee(environment)
    return norm, clipped
