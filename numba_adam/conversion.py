"""An array's elements in another format. The one caller of the conversion kernel."""

from __future__ import annotations

import numpy as np

from numba_adam.arrays import Array
from numba_adam.eight_bit import EightBit
from numba_adam.formats import FLOAT64, SIGNED8, UNSIGNED8, format_of
from numba_adam.kernels import convert as kernels


def convert(source: Array | EightBit, target: Array | EightBit) -> None:
    """Write the elements of `source` into `target`, rounded to the nearest of its format; they have the same shape."""
    described = [_described(array) for array in (source, target)]
    like = np.empty(0, np.float64 if any(format_ == FLOAT64 for *_, format_ in described) else np.float32)
    size = int(np.prod(target.shape, dtype=np.int64))
    kernels.convert(*(np.array(place, dtype=np.uint64) for place in described), size, like)


def format_number(array: Array | EightBit) -> int:
    """Return the format of an array of ours."""
    if isinstance(array, EightBit):
        return SIGNED8 if array.dtype == np.int8 else UNSIGNED8
    format_ = format_of(array.dtype)
    assert format_ is not None
    return format_


def _described(array: Array | EightBit) -> tuple[int, int, int]:
    """Return where an array lies, where its scales lie, and its format."""
    if isinstance(array, EightBit):
        return array.codes.ctypes.data, array.scales.ctypes.data, format_number(array)
    return array.ctypes.data, 0, format_number(array)
