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

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.cpu.kernels.formats import bytes_of
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.job import ZERO_GRAD
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, bfloat16

# Words of 8 bytes from the beginning of the object on, behind the reference count (word 0) on a 64-bit machine.
_TYPE, _DATA, _NDIM, _DIMS, _STRIDES, _DESCR, _FLAGS, _WORDS = 1, 2, 3, 4, 5, 7, 8, 9
C_ORDER, FORTRAN_ORDER, ALIGNED, WRITEABLE = 0x0001, 0x0002, 0x0100, 0x0400  # NPY_ARRAY_C_CONTIGUOUS and so on
_NONE, _ARRAY_TYPE, _FIRST_DTYPE = range(3)  # what `kinds` begins with
_FORMATS = (FLOAT32, FLOAT64, FLOAT16, BFLOAT16, BFLOAT16)  # of the dtypes that follow
_INT64, _UINT64 = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
_COMPARED = C_ORDER | FORTRAN_ORDER | ALIGNED | WRITEABLE
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


@inlined
def _is_laid_out(fields, item_bytes, shapes, strides, begin, end):  # type: ignore[no-untyped-def]
    """Say whether an array object's fields have the extents, and the strides, that stand from `begin` to `end`."""
    axes = end - begin
    if np.int64(fields[_NDIM] & np.uint64(_LOW_HALF)) != axes:
        return False
    own, own_strides = array_at(fields[_DIMS], axes, _INT64), array_at(fields[_STRIDES], axes, _INT64)
    size, is_laid_out = 1, True
    for d in range(axes):
        if own[d] != shapes[begin + d]:
            return False
        size *= own[d]
        # An axis of one element is never stepped along, nor is an array of none.
        if own_strides[d] != strides[begin + d] * item_bytes and own[d] > 1:
            is_laid_out = False
    return is_laid_out or size == 0


@inlined
def _is_as_before(object_, elements, dtype):  # type: ignore[no-untyped-def]
    """Say whether an array object may be written to, and has its elements and its dtype still."""
    fields = array_at(object_, np.uint64(_WORDS), _UINT64)
    if not fields[_FLAGS] & np.uint64(WRITEABLE):
        return False
    return fields[_DATA] == elements and fields[_DESCR] == dtype


@inline
def are_as_before(copies):  # type: ignore[no-untyped-def]
    """Say whether copies may be written to, and have their elements and dtypes still."""
    for k in range(len(copies)):
        if not _is_as_before(copies[k, 0], copies[k, 1], copies[k, 2]):
            return False
    return True


@inline
def flags_at(address, like):  # type: ignore[no-untyped-def]
    """Return the flags of the array object at an address."""
    return array_at(address, np.uint64(_WORDS), like)[_FLAGS]


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
    """Fill `job.grads` from `job.objects`, 0 for None; False if one of them, or an owner, is not what it must be."""
    needed = ALIGNED | WRITEABLE if job.options[ZERO_GRAD] else ALIGNED
    shapes, strides, owners = job.shapes, job.strides, job.owners
    for k in range(job.objects.size):
        begin, end = job.starts[k], job.starts[k + 1]
        if owners[k, 0] != 0:
            if not _is_as_before(owners[k, 0], owners[k, 1], owners[k, 2]):
                return False
            fields = array_at(owners[k, 0], np.uint64(_WORDS), _UINT64)
            if not _is_laid_out(fields, np.int64(owners[k, 3]), shapes, strides, begin, end):
                return False
        job.grads[k] = 0
        if job.objects[k] == job.kinds[_NONE]:
            continue
        format_ = kind_of(job.objects[k], job.kinds, needed)
        if format_ < 0:
            return False
        fields = array_at(job.objects[k], np.uint64(_WORDS), _UINT64)
        if not _is_laid_out(fields, np.int64(bytes_of(format_)), shapes, strides, begin, end):
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
    order = C_ORDER * own.c_contiguous | FORTRAN_ORDER * own.f_contiguous
    flags = order | ALIGNED * own.aligned | WRITEABLE * own.writeable
    if seen != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), flags):
        return False
    extents, strides = ((ctypes.c_int64 * array.ndim).from_address(words[word]) for word in (_DIMS, _STRIDES))
    return (tuple(extents), tuple(strides)) == (array.shape, array.strides)
