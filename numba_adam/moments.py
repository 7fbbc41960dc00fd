"""The arrays of a parameter's state: zeros to begin with, and placed so that a step is quick. May import NumPy.

A step reads and writes a parameter's arrays side by side. Where they lie at the same distance from a page's beginning,
as large allocations do, their addresses agree in the low bits, which is what a CPU compares when it asks whether a load
waits for an earlier store: every load seems to. So each of them begins at another place within its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_adam import eight_bit
from numba_adam.arrays import Array
from numba_adam.conversion import convert
from numba_adam.eight_bit import EightBit
from numba_adam.formats import NAMES, dtype_of

Moment = Array | EightBit

_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
_APART_BYTES = 21 * _CACHE_LINE_BYTES  # a third of a page, for param, exp_avg, exp_avg_sq; a fourth is near the first
_LARGE_BYTES = 32_768  # smaller arrays stay in the innermost cache whatever their places


class Moments(NamedTuple):
    """The state of a part's parameters beside their steps, array by array."""

    exp_avgs: list[Moment]
    exp_avg_sqs: list[Moment]
    max_exp_avg_sqs: list[Moment | None]


def zeros(params: Sequence[Array], formats: Sequence[str], moment: int) -> list[Moment]:
    """Return a moment for each parameter, zero everywhere; the system gives it no memory before it is touched.

    Args:
        params: the parameters.
        formats: the name of the format for each: "float32", "float64", "bfloat16" or "8bit".
        moment: which of a parameter's moments they are: 1, 2 or 3.
    """
    return [_zeros(param, name, moment) for param, name in zip(params, formats, strict=True)]


def copies(
    arrays: Sequence[Moment | None], params: Sequence[Array], formats: Sequence[str], moment: int
) -> list[Moment]:
    """Return copies of the moments in these formats, zeros where there is none; arguments as for `zeros`."""
    room = zeros(params, formats, moment)
    for array, target in zip(arrays, room, strict=True):
        if array is not None:
            convert(array, target)
    return room


def converted(param: Array, name: str) -> Array:
    """Return a copy of a parameter, rounded to a format by its name."""
    copy = room_beside(param, dtype_of(NAMES.index(name)), 0)
    convert(param, copy)
    return copy


def room_beside(param: Array, dtype: np.dtype[np.generic], place: int) -> Array:
    """Return zeros of a parameter's shape that begin `place` thirds of a page behind it, as seen within a page."""
    size = param.size * dtype.itemsize
    if size < _LARGE_BYTES:
        return np.zeros(param.shape, dtype)
    room = np.zeros(size + _PAGE_BYTES, dtype=np.uint8)
    wanted = param.ctypes.data // _CACHE_LINE_BYTES * _CACHE_LINE_BYTES + place * _APART_BYTES
    skip = (wanted - room.ctypes.data) % _PAGE_BYTES
    return room[skip : skip + size].view(dtype).reshape(param.shape)


def _zeros(param: Array, name: str, moment: int) -> Moment:
    if name == "8bit":
        return eight_bit.zeros(param.shape, np.int8 if moment == 1 else np.uint8)
    return room_beside(param, dtype_of(NAMES.index(name)), moment)
