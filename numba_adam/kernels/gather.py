"""Addresses of many NumPy arrays, checked, in one compiled pass. Imports Numba and NumPy.

Asking a thousand arrays for dtype, shape, flags and address from Python takes longer than updating them. The fields
lie in the array object, at offsets that NumPy's C ABI fixes (`PyArrayObject_fields` in ndarraytypes.h: its accessor
macros are compiled into every extension module). In CPython an object's id is its address. `usable` checks all this
once against NumPy's public answers; where it does not hold, the caller asks the arrays one by one.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.arrays import Extents
from numba_adam.kernels.compile import inline, kernel
from numba_adam.kernels.intrinsics import array_at

# Words of 8 bytes from the beginning of the object on, behind the reference count (word 0) on a 64-bit machine.
_TYPE, _DATA, _NDIM, _DIMS, _DESCR, _FLAGS, _WORDS = 1, 2, 3, 4, 7, 8, 9
_NEEDED = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
_LOW_HALF = 0xFFFFFFFF  # nd and flags are C ints: the lower half of their word


@inline
def _shares(begin, end, begins, ends):  # type: ignore[no-untyped-def]
    """Say whether a run of memory shares a byte with one of the separate, ascending runs."""
    last = np.searchsorted(begins, end) - 1  # the last run that begins before the end
    return last >= 0 and ends[last] > begin


@kernel
def _gather(objects, skipped, shapes, starts, wanted, sizes, begins, ends, addresses):  # type: ignore[no-untyped-def]
    """Fill `addresses`; return the number of arrays skipped, or -1 if one is not as wanted.

    Args:
        objects: (n,) uint64: where each array object lies.
        skipped: the object that stands for "no array": its address becomes 0.
        shapes: int64: the expected extents, one array after another.
        starts: (n + 1,) int64: where each array's extents begin in `shapes`.
        wanted: (2,) uint64: address of the type ndarray, address of the dtype.
        sizes: (n,) uint64: each array's size in bytes.
        begins: (m,) uint64: where the memory that no array may share begins, ascending.
        ends: (m,) uint64: where it ends.
        addresses: (n,) uint64: receives where each array's elements lie.
    """
    absent = 0
    for k in range(objects.size):
        if objects[k] == skipped:
            addresses[k] = 0
            absent += 1
            continue
        if array_at(objects[k], np.uint64(2), objects)[_TYPE] != wanted[0]:
            return -1
        fields = array_at(objects[k], np.uint64(_WORDS), objects)
        ndim = starts[k + 1] - starts[k]
        flags = fields[_FLAGS] & np.uint64(_NEEDED)
        if fields[_DESCR] != wanted[1] or flags != np.uint64(_NEEDED):
            return -1
        if np.int64(fields[_NDIM] & np.uint64(_LOW_HALF)) != ndim:
            return -1
        extents = array_at(fields[_DIMS], np.uint64(ndim), shapes)
        for d in range(ndim):
            if extents[d] != shapes[starts[k] + d]:
                return -1
        address = fields[_DATA]
        if sizes[k] and _shares(address, address + sizes[k], begins, ends):
            return -1
        addresses[k] = address
    return absent


class Gathered(NamedTuple):
    """Where arrays lie."""

    addresses: np.ndarray[Any, np.dtype[np.uint64]]  # 0 for an array that is not there
    absent: int  # how many are not there


class Gatherer:
    """Collects the addresses of arrays of known shapes and one dtype, which share no memory with certain others."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any], extents: Extents) -> None:
        """Remember what is wanted of each array, and the memory that it must keep apart from."""
        extents_of_all = [extent for shape in shapes for extent in shape]
        self._shapes = np.array([*extents_of_all, 0], dtype=np.int64)
        self._starts = np.cumsum([0, *map(len, shapes)], dtype=np.int64)
        self._wanted = np.array([id(np.ndarray), id(np.dtype(dtype))], dtype=np.uint64)
        self._none = np.uint64(id(None))
        self._sizes = np.array([math.prod(shape) * dtype.itemsize for shape in shapes], dtype=np.uint64)
        self._begins, self._ends = extents.begins, extents.ends

    def gather(self, arrays: Sequence[object]) -> Gathered | None:
        """Return where the arrays lie, or None if one of them is not as wanted or this machine is not usable.

        None stands for an array that is not there. `arrays` must stay alive until the addresses have been used.
        """
        if not usable():
            return None
        objects = np.fromiter(map(id, arrays), np.uint64, len(arrays))
        addresses = np.empty_like(objects)
        absent = _gather(
            objects,
            self._none,
            self._shapes,
            self._starts,
            self._wanted,
            self._sizes,
            self._begins,
            self._ends,
            addresses,
        )
        return Gathered(addresses, absent) if absent >= 0 else None


@functools.cache
def usable() -> bool:
    """Say whether array objects look as NumPy's C ABI says, by comparing with what arrays say of themselves."""
    header = object.__basicsize__
    if sys.implementation.name != "cpython" or sys.byteorder != "little" or sys.maxsize < 2**32 or header != 16:
        return False
    for array in (np.zeros((3, 5), np.float32), np.zeros(7)[1:], np.zeros((2, 3, 4)).transpose()):
        words = (ctypes.c_uint64 * _WORDS).from_address(id(array))
        seen = (words[_TYPE], words[_DATA], words[_NDIM] & _LOW_HALF, words[_DESCR], words[_FLAGS] & _NEEDED)
        contiguous = 0x0001 * array.flags.c_contiguous | 0x0100 * array.flags.aligned
        if seen != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), contiguous):
            return False
        dims = (ctypes.c_int64 * array.ndim).from_address(words[_DIMS])
        if tuple(dims) != array.shape:
            return False
    return True
