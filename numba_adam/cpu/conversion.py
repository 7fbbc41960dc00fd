"""Arrays converted to another number format. The only caller of the conversion kernels."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels import convert as kernels
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format
from numba_adam.settings.step_arrays import array_format


def convert(source: Array, target: Array) -> None:
    """Write the elements of `source` into `target`, rounded to the nearest of its format; they have the same shape."""
    places = [np.array([array.ctypes.data, array_format(array)], dtype=np.uint64) for array in (source, target)]
    is_double = Format.FLOAT64 in (array_format(source), array_format(target))
    kernels.convert(*places, target.size, np.empty(0, np.float64 if is_double else np.float32))


def encode(exp_avg: Array | None, exp_avg_sq: Array) -> tuple[EightBit, EightBit]:
    """Return both moments in 8 bits, each rounded to the nearest code.

    Args:
        exp_avg: first moment, in floats of any format; None encodes a second moment alone, and returns it twice.
        exp_avg_sq: second moment, likewise, of the same shape.
    """
    first = EightBit.zeros(exp_avg_sq.shape) if exp_avg is not None else None
    second = EightBit.zeros(exp_avg_sq.shape)
    copies = [_flat_float32(array) for array in (exp_avg_sq if exp_avg is None else exp_avg, exp_avg_sq)]
    kernels.encode(_places(first), _places(second), *copies)
    return first or second, second


def decode(exp_avg: EightBit | None, exp_avg_sq: EightBit) -> tuple[Array, Array]:
    """Return both moments as float32; the arguments are those that `encode` returned."""
    first, second = (np.zeros(exp_avg_sq.shape, dtype=np.float32) for _ in range(2))
    kernels.decode(_places(exp_avg), _places(exp_avg_sq), first.reshape(-1), second.reshape(-1))
    return first, second


def _flat_float32(array: Array) -> Array:
    """Return a float32 copy of an array, with one axis."""
    copy = np.empty(array.size, dtype=np.float32)
    convert(np.ascontiguousarray(array).reshape(-1), copy)
    return copy


def _places(moment: EightBit | None) -> Array:
    """Return the addresses of codes and scales; zeros without a moment."""
    pair = (0, 0) if moment is None else (moment.codes.ctypes.data, moment.scales.ctypes.data)
    return np.array(pair, dtype=np.uint64)
