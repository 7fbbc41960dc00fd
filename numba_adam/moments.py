"""The arrays of a parameter's state: zeros to begin with, and placed so that a step is quick. May import NumPy.

A step reads and writes a parameter's arrays side by side. Where they lie at the same distance from a page's beginning,
as large allocations do, their addresses agree in the low bits, which is what a CPU compares when it asks whether a load
waits for an earlier store: every load seems to. So each moment begins at another place within its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_adam.arrays import Array

_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
_APART_BYTES = 21 * _CACHE_LINE_BYTES  # a third of a page, for param, exp_avg, exp_avg_sq; a fourth is near the first
_LARGE_BYTES = 32_768  # smaller arrays stay in the innermost cache whatever their places


class Moments(NamedTuple):
    """The state of a part's parameters beside their steps, array by array."""

    exp_avgs: list[Array]
    exp_avg_sqs: list[Array]
    max_exp_avg_sqs: list[Array | None]


def zeros(params: Sequence[Array], moment: int) -> list[Array]:
    """Return an array of zeros like each parameter; the system gives it no memory before it is touched.

    Args:
        params: the parameters.
        moment: which of a parameter's moments they are: 1, 2 or 3.
    """
    return [_zeros_beside(param, moment) for param in params]


def copies(arrays: Sequence[Array | None], params: Sequence[Array], moment: int) -> list[Array]:
    """Return copies of the arrays, zeros where there is none; arguments as for `zeros`."""
    room = zeros(params, moment)
    for array, target in zip(arrays, room, strict=True):
        if array is not None:
            target[...] = array
    return room


def _zeros_beside(param: Array, moment: int) -> Array:
    if param.nbytes < _LARGE_BYTES:
        return np.zeros(param.shape, param.dtype)
    room = np.zeros(param.nbytes + _PAGE_BYTES, dtype=np.uint8)
    place = param.ctypes.data // _CACHE_LINE_BYTES * _CACHE_LINE_BYTES + moment * _APART_BYTES
    skip = (place - room.ctypes.data) % _PAGE_BYTES
    return room[skip : skip + param.nbytes].view(param.dtype).reshape(param.shape)
