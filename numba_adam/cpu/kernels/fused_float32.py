"""The update of a float32 parameter with float32 moments, its average and its bfloat16 copy, in one loop.

Memory delivers most when a loop goes through all arrays of a step side by side, and prefetches them. Three loops, for
the update of a tile, its average and its copy, take a quarter longer. Tiles are used only where they are necessary: for
gradients in other formats, for large copies, which are written past the caches, and to clear gradients. Imports Numba.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, merged
from numba_adam.cpu.kernels.element import adam_bare
from numba_adam.cpu.kernels.formats import compute_format, decoded
from numba_adam.cpu.kernels.intrinsics import array_at, stream
from numba_adam.cpu.kernels.prefetch import prefetched_of
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.cpu.kernels.tiles import PITCH, clear_grad, is_streamed
from numba_adam.numerics.formats import BFLOAT16, FLOAT32

_UINT16 = np.empty(0, np.uint16)
_CODE_BYTES = np.uint64(_UINT16.itemsize)


@inline
def is_fused(operands, like):  # type: ignore[no-untyped-def]
    """Say whether a parameter and its moments are float32, and its copy, if there is one, bfloat16."""
    if compute_format(like) != FLOAT32 or operands.max_exp_avg_sq.address != 0:
        return False
    if operands.copy.address != 0 and operands.copy.format != BFLOAT16:
        return False
    formats = operands.param.format, operands.exp_avg.format, operands.exp_avg_sq.format
    return formats == (FLOAT32, FLOAT32, FLOAT32)


@inline
def _tile_size(operands, size):  # type: ignore[no-untyped-def]
    """Return the number of elements that one loop updates."""
    needs_tiles = is_streamed(operands) or operands.zero_grad or operands.grad.format != FLOAT32
    return TILE if needs_tiles or size < 1 else size


@merged
def update_fused(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on, where it `is_fused` and the step `is_bare`."""
    tile = _tile_size(operands, size)
    for start in range(begin, begin + size, tile):
        rest = begin + size - start
        count = tile if tile < rest else rest
        prefetched = prefetched_of(count, rest) if operands.is_large else 0
        _update_tile(operands, np.uint64(start), np.uint64(count), prefetched, c, like)
    return size


@merged
def _update_tile(operands, begin, size, prefetched, c, like):  # type: ignore[no-untyped-def]
    skip = begin * np.uint64(like.itemsize)
    param = array_at(operands.param.address + skip, size, like)
    grad = decoded(operands.grad, begin, size, operands.scratch, like)
    exp_avg = array_at(operands.exp_avg.address + skip, size, like)
    exp_avg_sq = array_at(operands.exp_avg_sq.address + skip, size, like)
    ema = array_at(operands.ema + skip, size, like)
    copy = operands.copy.address + begin * _CODE_BYTES
    target = operands.scratch + np.uint64(PITCH * like.itemsize) if is_streamed(operands) else copy
    codes = array_at(target, size, _UINT16)
    if operands.ema != 0 and operands.copy.address != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, ema, codes, prefetched, None, c)
    elif operands.ema != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, ema, None, prefetched, None, c)
    elif operands.copy.address != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, codes, prefetched, None, c)
    else:
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, prefetched, None, c)
    if is_streamed(operands):
        stream(target, copy, size * _CODE_BYTES)
    clear_grad(operands, begin, size)
