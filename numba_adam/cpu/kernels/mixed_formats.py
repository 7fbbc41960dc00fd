"""The update where arrays have other formats than the one in which is computed, or more is done than the update.

Imports Numba.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.cpu.kernels import ranges
from numba_adam.cpu.kernels.compile import bind, inline, kernel, merged, parallel_kernel
from numba_adam.cpu.kernels.eight_bit_blocks import blocks_at, update_blocks
from numba_adam.cpu.kernels.element import is_bare
from numba_adam.cpu.kernels.formats import native
from numba_adam.cpu.kernels.fused_float32 import is_native, update_native
from numba_adam.cpu.kernels.intrinsics import array_at, fence, keep_until_here
from numba_adam.cpu.kernels.job import unpack
from numba_adam.cpu.kernels.pairs import adam_pairs
from numba_adam.cpu.kernels.ranges import count_steps, cut
from numba_adam.cpu.kernels.tiles import ROOM, ROOMS, is_streamed, update_tiles, work_on
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import BFLOAT16, EIGHT_BIT, FLOAT32, ITEM_BYTES

_UINT32 = np.empty(0, np.uint32)
_WORD_MASK = np.uint64(3)


@inline
def _are_pairs(work):  # type: ignore[no-untyped-def]
    """Say whether all of a parameter's arrays are bfloat16, begin at whole words, and are only updated."""
    if work.max_exp_avg_sq.address | work.ema | work.copy.address or work.param.is_stochastic or work.zero_grad:
        return False
    addresses = work.param.address | work.grad.address | work.exp_avg.address | work.exp_avg_sq.address
    if addresses & _WORD_MASK:
        return False
    formats = work.param.format, work.grad.format, work.exp_avg.format, work.exp_avg_sq.format
    return formats == (BFLOAT16, BFLOAT16, BFLOAT16, BFLOAT16)


@merged
def _update_pairs(work, begin, size, c):  # type: ignore[no-untyped-def]
    """Update the first of `size` elements, two by two, where all arrays are bfloat16; return how many."""
    skip, words = np.uint64(begin * ITEM_BYTES[BFLOAT16]), np.uint64(size // 2)
    param = array_at(work.param.address + skip, words, _UINT32)
    grad = array_at(work.grad.address + skip, words, _UINT32)
    exp_avg = array_at(work.exp_avg.address + skip, words, _UINT32)
    adam_pairs(param, grad, exp_avg, array_at(work.exp_avg_sq.address + skip, words, _UINT32), c)
    return size // 2 * 2


@inline
def _is_eight_bit(work, like):  # type: ignore[no-untyped-def]
    """Say whether a parameter's moments are in 8 bits, all its other arrays float32, and all are only updated."""
    if work.max_exp_avg_sq.address | work.ema | work.copy.address or work.zero_grad or native(like) != FLOAT32:
        return False
    return (work.param.format, work.grad.format, work.exp_avg_sq.format) == (FLOAT32, FLOAT32, EIGHT_BIT)


@merged
def _update_blocks(work, begin, size, c):  # type: ignore[no-untyped-def]
    """Update the first of `size` elements, in whole blocks, where the moments are in 8 bits; return how many."""
    skip, count = np.uint64(begin * ITEM_BYTES[FLOAT32]), size // BLOCK
    if count > 0:
        param, grad = work.param.address + skip, work.grad.address + skip
        update_blocks(blocks_at(param, grad, work.exp_avg, work.exp_avg_sq, np.uint64(begin)), count, work.rooms, c)
    return count * BLOCK


@merged
def _update_ahead(work, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update the first of `size` elements, as many as a shorter way than by tiles leads to; return how many."""
    if is_bare(c) and _are_pairs(work):
        return _update_pairs(work, begin, size, c)
    if is_bare(c) and _is_eight_bit(work, like):
        return _update_blocks(work, begin, size, c)
    if is_bare(c) and is_native(work, like):
        return update_native(work, begin, size, c, like)
    return 0


@merged
def _update_part(job, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    rooms = np.empty(ROOMS * ROOM, job.constants.dtype)
    work = work_on(job, row, step, np.uint64(rooms.ctypes.data))
    done = _update_ahead(work, begin, size, c, job.constants)
    update_tiles(work, begin + done, size - done, c, job.constants)
    if is_streamed(work):
        fence()
    keep_until_here(rooms)


_update_range = merged(bind(ranges.update_range, update_part=_update_part))


@kernel
def update_serial(places, like, steps, count):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on the calling thread. Arguments as for `update.update_serial`."""
    job = unpack(places, like)
    _update_range(job, count, steps, 0, job.offsets[count])
    count_steps(job, count, steps)


@parallel_kernel
def update_parallel(places, like, steps, count, tasks):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on `tasks` threads. Arguments as for `update.update_serial`."""
    for task in prange(tasks):
        job = unpack(places, like)
        _update_range(job, count, steps, cut(job, count, task, tasks), cut(job, count, task + 1, tasks))
    count_steps(unpack(places, like), count, steps)
