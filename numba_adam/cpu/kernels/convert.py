"""An array's elements written into another array, of another format. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.eight_bit import decode_moments, encode_moments
from numba_adam.cpu.kernels.formats import Operand, compute_format, decoded, store
from numba_adam.cpu.kernels.intrinsics import array_at, buffer, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.numerics.eight_bit_codecs import TO_NEAREST
from numba_adam.numerics.formats import EIGHT_BIT


@kernel
def convert(source, target, size, like):  # type: ignore[no-untyped-def]
    """Write an array's elements into another array, rounded to the nearest number of its format.

    Args:
        source: (2,) uint64: the array's address and format.
        target: (2,) uint64: likewise, of the array that is written.
        size: number of elements.
        like: any float32 array, or any float64 array if one of the formats is float64.
    """
    environment = enter_ieee()
    scratch = buffer(TILE, like)
    for begin in range(0, size, TILE):
        _convert_tile(_plain(source), _plain(target), np.uint64(begin), np.uint64(min(TILE, size - begin)), scratch)
    leave_ieee(environment)


@inline
def _plain(pair):  # type: ignore[no-untyped-def]
    return Operand(pair[0], np.uint64(0), np.int64(pair[1]), False, np.uint32(0))


@inline
def _convert_tile(source, target, begin, size, scratch):  # type: ignore[no-untyped-def]
    values = decoded(source, begin, size, np.uint64(scratch.ctypes.data), scratch)
    if target.format == compute_format(scratch):
        copy = array_at(target.address + begin * np.uint64(scratch.itemsize), size, scratch)
        for i in range(values.size):
            copy[i] = values[i]
    else:
        store(values, target, begin, scratch)


@inline
def _in_8_bits(pair):  # type: ignore[no-untyped-def]
    return Operand(pair[0], pair[1], EIGHT_BIT, False, TO_NEAREST)


@kernel
def encode(exp_avg, exp_avg_sq, first, second):  # type: ignore[no-untyped-def]
    """Encode both moments to 8 bits, each element to the nearest code.

    Args:
        exp_avg: (2,) uint64: the addresses of the first moment's codes and scales; zeros to encode the second alone.
        exp_avg_sq: (2,) uint64: likewise of the second moment.
        first: float32: the first moment; overwritten.
        second: float32: the second moment; overwritten.
    """
    environment = enter_ieee()
    encode_moments(first, second, _in_8_bits(exp_avg), _in_8_bits(exp_avg_sq), np.uint64(0), np.uint32(0))
    leave_ieee(environment)


@kernel
def decode(exp_avg, exp_avg_sq, first, second):  # type: ignore[no-untyped-def]
    """Decode both moments. Arguments as for `encode`; `first` and `second` receive the moments."""
    environment = enter_ieee()
    decode_moments(_in_8_bits(exp_avg), _in_8_bits(exp_avg_sq), np.uint64(0), first, second)
    leave_ieee(environment)
