"""One array's elements written into another, of another format. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.eight_bit import close_moments, open_moments
from numba_adam.cpu.kernels.formats import Source, close, native, opened
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.numerics.codecs import TO_NEAREST
from numba_adam.numerics.formats import EIGHT_BIT


@kernel
def convert(source, target, size, like):  # type: ignore[no-untyped-def]
    """Write an array's elements into another array, rounded to the nearest of its format.

    Args:
        source: (2,) uint64: where the elements lie, and their format.
        target: likewise, of the array that is written.
        size: how many elements.
        like: an array of float32, or of float64 where one of the two formats is that.
    """
    before = enter_ieee()
    room = np.empty(TILE, like.dtype)
    for begin in range(0, size, TILE):
        _convert_tile(_plain(source), _plain(target), np.uint64(begin), np.uint64(min(TILE, size - begin)), room)
    leave_ieee(before)


@inline
def _plain(place):  # type: ignore[no-untyped-def]
    return Source(place[0], np.uint64(0), np.int64(place[1]), False, np.uint32(0))


@inline
def _convert_tile(source, target, begin, size, room):  # type: ignore[no-untyped-def]
    values = opened(source, begin, size, np.uint64(room.ctypes.data), room)
    if target.format == native(room):
        array_at(target.address + begin * np.uint64(room.itemsize), size, room)[:] = values
    else:
        close(values, target, begin, room)


@inline
def _in_8_bits(place):  # type: ignore[no-untyped-def]
    return Source(place[0], place[1], EIGHT_BIT, False, TO_NEAREST)


@kernel
def encode(exp_avg, exp_avg_sq, first, second):  # type: ignore[no-untyped-def]
    """Encode both moments to 8 bits, each element to the nearest code.

    Args:
        exp_avg: (2,) uint64: where the first moment's codes and scales lie, or zeros to leave it out.
        exp_avg_sq: likewise the second one's.
        first: float32: the first moment; overwritten.
        second: float32: the second one; overwritten.
    """
    before = enter_ieee()
    close_moments(first, second, _in_8_bits(exp_avg), _in_8_bits(exp_avg_sq), np.uint64(0), np.uint32(0))
    leave_ieee(before)


@kernel
def decode(exp_avg, exp_avg_sq, first, second):  # type: ignore[no-untyped-def]
    """Decode both moments; arguments as for `encode`."""
    before = enter_ieee()
    open_moments(_in_8_bits(exp_avg), _in_8_bits(exp_avg_sq), np.uint64(0), first, second)
    leave_ieee(before)
