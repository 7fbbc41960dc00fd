"""Find where many NumPy arrays lie, and check them, in one compiled pass. Imports Numba and NumPy.

Asking a thousand arrays for dtype, shape, flags and address from Python takes longer than updating them. The fields
lie in the array object, at offsets that NumPy's C ABI fixes (`PyArrayObject_fields` in ndarraytypes.h: its accessor
macros are compiled into every extension module). In CPython an object's id is its address. `usable` compares all this
once with what NumPy answers; where it does not hold, the caller asks the arrays one by one.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any, NamedTuple

import numpy as np

from numba_adam.kernels.compile import inline
from numba_adam.kernels.intrinsics import array_at

# Words of 8 bytes from the beginning of the object on, behind the reference count (word 0) on a 64-bit machine.
_TYPE, _DATA, _NDIM, _DIMS, _DESCR, _FLAGS, _WORDS = 1, 2, 3, 4, 7, 8, 9
_NEEDED = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
_LOW_HALF = 0xFFFFFFFF  # nd and flags are C ints: the lower half of their word


class Wanted(NamedTuple):
    """What each array must be, and which memory it must not share."""

    objects: np.ndarray  # type: ignore[type-arg]  # (3,) uint64: address of None, of the type ndarray, of the dtype
    shapes: np.ndarray  # type: ignore[type-arg]  # int64: the extents, one array after the other
    starts: np.ndarray  # type: ignore[type-arg]  # (n + 1,) int64: where each array's extents begin in `shapes`
    sizes: np.ndarray  # type: ignore[type-arg]  # (n,) uint64: sizes in bytes
    begins: np.ndarray  # type: ignore[type-arg]  # (m,) uint64: where each run of memory taken begins, ascending
    ends: np.ndarray  # type: ignore[type-arg]  # (m,) uint64: where it ends


@inline
def _shares(begin, end, begins, ends):  # type: ignore[no-untyped-def]
    """Say whether a run of memory shares a byte with one of the separate, ascending runs."""
    last = np.searchsorted(begins, end) - 1  # the last run that begins before the end
    return last >= 0 and ends[last] > begin


@inline
def _fits(address, k, wanted):  # type: ignore[no-untyped-def]
    """Say whether the object at an address is the k-th array that is wanted."""
    if array_at(address, np.uint64(2), wanted.objects)[_TYPE] != wanted.objects[1]:
        return False
    fields = array_at(address, np.uint64(_WORDS), wanted.objects)
    needed = np.uint64(_NEEDED)
    ndim = wanted.starts[k + 1] - wanted.starts[k]
    if fields[_DESCR] != wanted.objects[2] or fields[_FLAGS] & needed != needed:
        return False
    if np.int64(fields[_NDIM] & np.uint64(_LOW_HALF)) != ndim:
        return False
    extents = array_at(fields[_DIMS], np.uint64(ndim), wanted.shapes)
    for d in range(ndim):
        if extents[d] != wanted.shapes[wanted.starts[k] + d]:
            return False
    return True


@inline
def gather(objects, wanted, addresses):  # type: ignore[no-untyped-def]
    """Fill `addresses` with where each array's elements lie, 0 for None; False if an array is not as wanted.

    Args:
        objects: (n,) uint64: where each array object lies.
        wanted: what each must be.
        addresses: (n,) uint64.
    """
    for k in range(objects.size):
        addresses[k] = 0
        if objects[k] == wanted.objects[0]:
            continue
        if not _fits(objects[k], k, wanted):
            return False
        address = array_at(objects[k], np.uint64(_WORDS), objects)[_DATA]
        size = wanted.sizes[k]
        if size and _shares(address, address + size, wanted.begins, wanted.ends):
            return False
        addresses[k] = address
    return True


@functools.cache
def usable() -> bool:
    """Say whether array objects look as NumPy's C ABI says, by comparing with what arrays say of themselves."""
    is_laid_out = sys.implementation.name == "cpython" and object.__basicsize__ == 16
    if not is_laid_out or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    samples = (np.zeros((3, 5), np.float32), np.zeros(7)[1:], np.zeros((2, 3, 4)).transpose())
    return all(_is_as_expected(sample) for sample in samples)


def _is_as_expected(array: np.ndarray[Any, Any]) -> bool:
    words = (ctypes.c_uint64 * _WORDS).from_address(id(array))
    seen = (words[_TYPE], words[_DATA], words[_NDIM] & _LOW_HALF, words[_DESCR], words[_FLAGS] & _NEEDED)
    flags = 0x0001 * array.flags.c_contiguous | 0x0100 * array.flags.aligned
    if seen != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), flags):
        return False
    return tuple((ctypes.c_int64 * array.ndim).from_address(words[_DIMS])) == array.shape
