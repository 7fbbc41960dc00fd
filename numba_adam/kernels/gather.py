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
from typing import Any

import numpy as np

from numba_adam.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, bfloat16
from numba_adam.kernels.compile import inline
from numba_adam.kernels.formats import bytes_of
from numba_adam.kernels.intrinsics import array_at
from numba_adam.kernels.job import ZERO_GRAD
from numba_adam.kernels.search import count_below

# Words of 8 bytes from the beginning of the object on, behind the reference count (word 0) on a 64-bit machine.
_TYPE, _DATA, _NDIM, _DIMS, _DESCR, _FLAGS, _WORDS = 1, 2, 3, 4, 7, 8, 9
NEEDED = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
WRITEABLE = 0x0400  # NPY_ARRAY_WRITEABLE
_NONE, _ARRAY_TYPE, _FIRST_DTYPE = range(3)  # what `kinds` begins with
_FORMATS = (FLOAT32, FLOAT64, FLOAT16, BFLOAT16, BFLOAT16)  # of the dtypes that follow
_INT64 = np.empty(0, dtype=np.int64)
_COMPARED = NEEDED | WRITEABLE
_LOW_HALF = 0xFFFFFFFF  # nd and flags are C ints: the lower half of their word


@inline
def _shares(begin, end, begins, ends):  # type: ignore[no-untyped-def]
    """Say whether a run of memory shares a byte with one of the separate, ascending runs."""
    last = count_below(begins, end) - 1  # the last run that begins before the end
    return last >= 0 and ends[last] > begin


@inline
def kind_of(address, kinds, needed):  # type: ignore[no-untyped-def]
    """Return the format of the array object at an address; -1 if it is no plain ndarray of one, with these flags."""
    if array_at(address, np.uint64(2), kinds)[_TYPE] != kinds[_ARRAY_TYPE]:
        return -1
    fields = array_at(address, np.uint64(_WORDS), kinds)
    if fields[_FLAGS] & np.uint64(needed) != np.uint64(needed):
        return -1
    for k in range(len(_FORMATS)):
        if fields[_DESCR] == kinds[_FIRST_DTYPE + k]:
            return _FORMATS[k]
    return -1


@inline
def are_writable(objects):  # type: ignore[no-untyped-def]
    """Say whether the array objects at these addresses may be written to."""
    for k in range(objects.size):
        if not array_at(objects[k], np.uint64(_WORDS), objects)[_FLAGS] & np.uint64(WRITEABLE):
            return False
    return True


@inline
def shape_at(address, like):  # type: ignore[no-untyped-def]
    """Return the extents, int64, of the array object at an address."""
    fields = array_at(address, np.uint64(_WORDS), like)
    return array_at(fields[_DIMS], fields[_NDIM] & np.uint64(_LOW_HALF), _INT64)


@inline
def data_at(address, like):  # type: ignore[no-untyped-def]
    """Return where the elements of the array object at an address lie."""
    return array_at(address, np.uint64(_WORDS), like)[_DATA]


@inline
def same(extents, others):  # type: ignore[no-untyped-def]
    """Say whether two shapes are equal."""
    if extents.size != others.size:
        return False
    for d in range(extents.size):
        if extents[d] != others[d]:
            return False
    return True


@inline
def gather(job):  # type: ignore[no-untyped-def]
    """Fill `job.grads` from `job.objects`, 0 for None; False if one of the arrays is not what it must be."""
    needed = NEEDED | WRITEABLE if job.options[ZERO_GRAD] else NEEDED
    for k in range(job.objects.size):
        job.grads[k] = 0
        if job.objects[k] == job.kinds[_NONE]:
            continue
        format_ = kind_of(job.objects[k], job.kinds, needed)
        if format_ < 0:
            return False
        if not same(shape_at(job.objects[k], job.objects), job.shapes[job.starts[k] : job.starts[k + 1]]):
            return False
        address = data_at(job.objects[k], job.objects)
        size = np.uint64(job.lengths[k]) * bytes_of(format_)
        if size and _shares(address, address + size, job.begins, job.ends):
            return False
        job.grads[k], job.grad_formats[k] = address, format_
    return True


def kinds() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the addresses of None, of the type ndarray, and of the dtypes of gradients; 0 for one not loaded."""
    dtypes = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), np.dtype(np.uint16), bfloat16()]
    addresses = [0 if dtype is None else id(dtype) for dtype in dtypes]
    return np.array([id(None), id(np.ndarray), *addresses], dtype=np.uint64)


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
    seen = (words[_TYPE], words[_DATA], words[_NDIM] & _LOW_HALF, words[_DESCR], words[_FLAGS] & _COMPARED)
    own = array.flags
    flags = 0x0001 * own.c_contiguous | 0x0100 * own.aligned | WRITEABLE * own.writeable
    if seen != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), flags):
        return False
    return tuple((ctypes.c_int64 * array.ndim).from_address(words[_DIMS])) == array.shape
