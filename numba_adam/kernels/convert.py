"""One array's elements written into another, of another format. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.kernels.compile import inline, kernel
from numba_adam.kernels.formats import Source, close, native, opened
from numba_adam.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.kernels.ranges import TILE


@kernel
def convert(source, target, size, like):  # type: ignore[no-untyped-def]
    """Write an array's elements into another array, rounded to the nearest of its format.

    Args:
        source: (3,) uint64: where the elements lie, where the scales of their blocks lie, or 0, and their format.
        target: likewise, of the array that is written.
        size: how many elements.
        like: an array of float32, or of float64 where one of the two formats is that.
    """
    before = enter_ieee()
    room = np.empty(2 * TILE, like.dtype)
    for begin in range(0, size, TILE):
        _convert_tile(source, target, np.uint64(begin), np.uint64(min(TILE, size - begin)), room, like)
    leave_ieee(before)


@inline
def _convert_tile(source, target, begin, size, room, like):  # type: ignore[no-untyped-def]
    place = np.uint64(room.ctypes.data)
    target_ = Source(target[0], target[1], np.int64(target[2]), False, np.uint32(0))
    values = opened(Source(source[0], source[1], np.int64(source[2]), False, np.uint32(0)), begin, size, place, like)
    if target_.format == native(like):
        array_at(target_.address + begin * np.uint64(like.itemsize), size, like)[:] = values
    else:
        close(values, target_, begin, like)
