"""The update of arrays in mixed formats, or with optional work fused into the pass. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel, merged
from numba_adam.cpu.kernels.eight_bit_blocks import blocks_at, update_blocks
from numba_adam.cpu.kernels.element import is_bare
from numba_adam.cpu.kernels.formats import compute_format
from numba_adam.cpu.kernels.fused_float32 import is_fused, update_fused
from numba_adam.cpu.kernels.intrinsics import array_at, buffer, fence
from numba_adam.cpu.kernels.launch_plan import unpack
from numba_adam.cpu.kernels.pairs import adam_pairs, adam_pairs_stochastic
from numba_adam.cpu.kernels.ranges import count_steps, cut, range_updater
from numba_adam.cpu.kernels.tasks import is_last
from numba_adam.cpu.kernels.tiles import SCRATCH, is_streamed, operands_of, tiles_updater, update_floats, update_moments
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import BFLOAT16, EIGHT_BIT, FLOAT32, ITEM_BYTES

_UINT32 = np.empty(0, np.uint32)
_WORD_MASK = np.uint64(3)


@inline
def _are_pairs(o):  # type: ignore[no-untyped-def]
    """Say whether all arrays of a parameter are bfloat16 at multiples of 4 bytes, with no work besides the update."""
    if o.max_exp_avg_sq.address | o.ema | o.copy.address or o.zero_grad:
        return False
    addresses = o.param.address | o.grad.address | o.exp_avg.address | o.exp_avg_sq.address
    if addresses & _WORD_MASK:
        return False
    formats = o.param.format, o.grad.format, o.exp_avg.format, o.exp_avg_sq.format
    return formats == (BFLOAT16, BFLOAT16, BFLOAT16, BFLOAT16)


@merged
def _update_pairs(o, begin, size, c):  # type: ignore[no-untyped-def]
    """Update the first of `size` elements in pairs, where all arrays are bfloat16; return the number of elements."""
    skip, words = np.uint64(begin * ITEM_BYTES[BFLOAT16]), np.uint64(size // 2)
    param = array_at(o.param.address + skip, words, _UINT32)
    grad = array_at(o.grad.address + skip, words, _UINT32)
    exp_avg = array_at(o.exp_avg.address + skip, words, _UINT32)
    exp_avg_sq = array_at(o.exp_avg_sq.address + skip, words, _UINT32)
    if o.param.is_stochastic:
        keys = o.param.key, o.exp_avg.key, o.exp_avg_sq.key
        adam_pairs_stochastic(param, grad, exp_avg, exp_avg_sq, keys, np.uint32(begin // 2), c)
    else:
        adam_pairs(param, grad, exp_avg, exp_avg_sq, c)
    return size // 2 * 2


@inline
def _is_eight_bit(o, like):  # type: ignore[no-untyped-def]
    """Say whether a parameter's moments are in 8 bits and its other arrays float32, with no work besides the update."""
    if o.max_exp_avg_sq.address | o.ema | o.copy.address or o.zero_grad or compute_format(like) != FLOAT32:
        return False
    return (o.param.format, o.grad.format, o.exp_avg_sq.format) == (FLOAT32, FLOAT32, EIGHT_BIT)


@merged
def _update_blocks(o, begin, size, c):  # type: ignore[no-untyped-def]
    """Update the whole blocks of `size` elements whose moments are in 8 bits; return the number of elements."""
    skip, count = np.uint64(begin * ITEM_BYTES[FLOAT32]), size // BLOCK
    if count > 0:
        param, grad = o.param.address + skip, o.grad.address + skip
        update_blocks(blocks_at(param, grad, o.exp_avg, o.exp_avg_sq, np.uint64(begin)), count, o.scratch, c)
    return count * BLOCK


@merged
def update_fast(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update the first of `size` elements with a faster loop, if there is one; return the number of elements."""
    if is_bare(c) and _are_pairs(operands):
        return _update_pairs(operands, begin, size, c)
    if is_bare(c) and _is_eight_bit(operands, like):
        return _update_blocks(operands, begin, size, c)
    if is_bare(c) and is_fused(operands, like):
        return update_fused(operands, begin, size, c, like)
    return 0


update_tiles, update_float64_tiles = tiles_updater(update_moments), tiles_updater(update_floats)


@merged
def _update_part(plan, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    scratch = buffer(SCRATCH, plan.constants)
    operands = operands_of(plan, row, step, np.uint64(scratch.ctypes.data))
    done = update_fast(operands, begin, size, c, plan.constants)
    update_tiles(operands, begin + done, size - done, c, plan.constants)
    if is_streamed(operands):
        fence()


@merged
def _update_float64_part(plan, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """The same for float64, which has no faster loops and no moments in 8 bits."""
    scratch = buffer(SCRATCH, plan.constants)
    operands = operands_of(plan, row, step, np.uint64(scratch.ctypes.data))
    update_float64_tiles(operands, begin, size, c, plan.constants)
    if is_streamed(operands):
        fence()


_update_range, _update_float64_range = range_updater(_update_part), range_updater(_update_float64_part)


@kernel
def update(packed, like, steps, count, task, tasks):  # type: ignore[no-untyped-def]
    """Update one share of the arrays of a plan that is computed in float32. Arguments as for `update.update`."""
    plan = unpack(packed, like)
    if task < tasks:
        _update_range(plan, count, steps, cut(plan, count, task, tasks), cut(plan, count, task + 1, tasks))
    if is_last(task, tasks):
        count_steps(plan, count, steps)


@kernel
def update_float64(packed, like, steps, count, task, tasks):  # type: ignore[no-untyped-def]
    """The same for a plan that is computed in float64: it is half of the code."""
    plan = unpack(packed, like)
    if task < tasks:
        _update_float64_range(plan, count, steps, cut(plan, count, task, tasks), cut(plan, count, task + 1, tasks))
    if is_last(task, tasks):
        count_steps(plan, count, steps)
