"""The update of a float32 parameter with float32 moments, and of its average and its bfloat16 copy in the same loop.

Memory delivers most when every array that a step touches is read and written little by little, all of them side by
side, and is asked for ahead: a loop for the update of a tile, one for its average and one for its copy take a quarter
longer. So this way is taken wherever it leads. Tiles are only made where they must be: for gradients in other formats,
for large copies, which go past the caches, and to clear gradients. Imports Numba.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, merged
from numba_adam.cpu.kernels.element import adam_bare
from numba_adam.cpu.kernels.formats import native, opened
from numba_adam.cpu.kernels.intrinsics import array_at, stream
from numba_adam.cpu.kernels.prefetch import STRETCH, stretches
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.cpu.kernels.tiles import ROOM, clear_grad, is_streamed
from numba_adam.numerics.formats import BFLOAT16, FLOAT32

_UINT16 = np.empty(0, np.uint16)
_CODE_BYTES = np.uint64(_UINT16.itemsize)


@inline
def is_native(work, like):  # type: ignore[no-untyped-def]
    """Say whether a parameter and its moments are float32, and its copy, if there is one, bfloat16."""
    if native(like) != FLOAT32 or work.max_exp_avg_sq.address != 0:
        return False
    if work.copy.address != 0 and work.copy.format != BFLOAT16:
        return False
    return (work.param.format, work.exp_avg.format, work.exp_avg_sq.format) == (FLOAT32, FLOAT32, FLOAT32)


@inline
def _tile(work, size):  # type: ignore[no-untyped-def]
    """Return how many elements are updated in one go."""
    return TILE if is_streamed(work) or work.zero_grad or work.grad.format != FLOAT32 else max(size, 1)


@merged
def update_native(work, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array that `is_native`, from element `begin` on, in a step that `is_bare`."""
    tile = _tile(work, size)
    for start in range(begin, begin + size, tile):
        rest = begin + size - start
        count = min(tile, rest)
        asked = min(stretches(rest), count // STRETCH) if work.is_large else 0
        _update_tile(work, np.uint64(start), np.uint64(count), asked, c, like)
    return size


@merged
def _update_tile(work, begin, size, asked, c, like):  # type: ignore[no-untyped-def]
    skip = begin * np.uint64(like.itemsize)
    param = array_at(work.param.address + skip, size, like)
    grad = opened(work.grad, begin, size, work.rooms, like)
    exp_avg = array_at(work.exp_avg.address + skip, size, like)
    exp_avg_sq = array_at(work.exp_avg_sq.address + skip, size, like)
    ema = array_at(work.ema + skip, size, like)
    copy = work.copy.address + begin * _CODE_BYTES
    room = work.rooms + np.uint64(ROOM * like.itemsize) if is_streamed(work) else copy
    codes = array_at(room, size, _UINT16)
    if work.ema != 0 and work.copy.address != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, ema, codes, asked, c)
    elif work.ema != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, ema, None, asked, c)
    elif work.copy.address != 0:
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, codes, asked, c)
    else:
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, asked, c)
    if is_streamed(work):
        stream(room, copy, size * _CODE_BYTES)
    clear_grad(work, begin, size)
