"""The addresses of many NumPy arrays, validated in one compiled pass. Imports Numba and NumPy.

Reading the dtype, shape, flags and address of a thousand arrays in Python takes longer than updating them. The array
object contains these fields at offsets that NumPy's C ABI fixes (`PyArrayObject_fields` in ndarraytypes.h: its accessor
macros are compiled into every extension module), and in CPython the id of an object is its address. `usable` compares
all this once with what NumPy says. If it differs, the caller reads the arrays one by one.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import numpy as np

from numba_adam.cpu.kernels.compile import array_inline, inline, inlined
from numba_adam.cpu.kernels.formats import bytes_of
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.launch_plan import ZERO_GRAD
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.formats import BFLOAT16, bfloat16

# Fields of the object, as indices of words of 8 bytes; word 0 is the reference count. For 64-bit machines.
_TYPE, _DATA, _NDIM, _DIMS, _STRIDES, _DESCR, _FLAGS, _WORDS = 1, 2, 3, 4, 5, 7, 8, 9
C_ORDER, FORTRAN_ORDER, ALIGNED, WRITEABLE = 0x0001, 0x0002, 0x0100, 0x0400  # NPY_ARRAY_C_CONTIGUOUS and so on
_NONE, _ARRAY_TYPE, _FIRST_DTYPE = range(3)  # entries of `kinds`; then come the dtypes
_ML_BFLOAT16 = 4  # among the dtypes: the others stand at the numbers of their formats
_DTYPES = _ML_BFLOAT16 + 1
_INT64, _UINT64 = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
_COMPARED = C_ORDER | FORTRAN_ORDER | ALIGNED | WRITEABLE
_LOW_HALF = 0xFFFFFFFF  # ndim and flags are C ints: the lower half of their word


@inline
def _shares(begin, end, begins, ends):  # type: ignore[no-untyped-def]
    """Say whether a range of memory shares a byte with one of the separate, ascending ranges."""
    last = count_below(begins, begins.size, end) - 1  # the last range that begins before the end
    return last >= 0 and ends[last] > begin


@inline
def format_at(address, kinds, needed):  # type: ignore[no-untyped-def]
    """Return the format of the array object at an address; -1 if it is not an ndarray with a format and these flags."""
    if array_at(address, np.uint64(2), kinds)[_TYPE] != kinds[_ARRAY_TYPE]:
        return -1
    fields = array_at(address, np.uint64(_WORDS), kinds)
    if fields[_FLAGS] & np.uint64(needed) != np.uint64(needed):
        return -1
    for k in range(_DTYPES):
        if fields[_DESCR] == kinds[_FIRST_DTYPE + k]:
            return k if k != _ML_BFLOAT16 else BFLOAT16
    return -1


@inlined
def _has_layout(fields, item_bytes, shapes, strides, begin, end):  # type: ignore[no-untyped-def]
    """Say whether an array object has the shape and the strides that stand from entry `begin` to entry `end`."""
    axes = end - begin
    if np.int64(fields[_NDIM] & np.uint64(_LOW_HALF)) != axes:
        return False
    own, own_strides = array_at(fields[_DIMS], axes, _INT64), array_at(fields[_STRIDES], axes, _INT64)
    size, has_strides = 1, True
    for d in range(axes):
        if own[d] != shapes[begin + d]:
            return False
        size *= own[d]
        # Strides do not matter along an axis of one element, or in an array without elements.
        if own_strides[d] != strides[begin + d] * item_bytes and own[d] > 1:
            has_strides = False
    return has_strides or size == 0


@inlined
def _is_unchanged(object_, elements, dtype):  # type: ignore[no-untyped-def]
    """Say whether an array object is writable and still has the same address of its elements and the same dtype."""
    fields = array_at(object_, np.uint64(_WORDS), _UINT64)
    if not fields[_FLAGS] & np.uint64(WRITEABLE):
        return False
    return fields[_DATA] == elements and fields[_DESCR] == dtype


@inline
def are_unchanged(copies):  # type: ignore[no-untyped-def]
    """Say whether all copies are writable and still have the same addresses and dtypes."""
    for k in range(len(copies)):
        if not _is_unchanged(copies[k, 0], copies[k, 1], copies[k, 2]):
            return False
    return True


@inline
def flags_at(address, like):  # type: ignore[no-untyped-def]
    """Return the flags of the array object at an address."""
    return array_at(address, np.uint64(_WORDS), like)[_FLAGS]


@array_inline
def shape_at(address, like):  # type: ignore[no-untyped-def]
    """Return the shape, int64, of the array object at an address."""
    fields = array_at(address, np.uint64(_WORDS), like)
    return array_at(fields[_DIMS], fields[_NDIM] & np.uint64(_LOW_HALF), _INT64)


@inline
def data_at(address, like):  # type: ignore[no-untyped-def]
    """Return the address of the elements of the array object at an address."""
    return array_at(address, np.uint64(_WORDS), like)[_DATA]


@inline
def same(shape, other):  # type: ignore[no-untyped-def]
    """Say whether two shapes are equal."""
    if shape.size != other.size:
        return False
    for d in range(shape.size):
        if shape[d] != other[d]:
            return False
    return True


@inline
def gather(plan):  # type: ignore[no-untyped-def]
    """Fill `plan.grads` from `plan.objects`, 0 for None; return False if a gradient or an owner does not fit."""
    needed = ALIGNED | WRITEABLE if plan.options[ZERO_GRAD] else ALIGNED
    shapes, strides, owners = plan.shapes, plan.strides, plan.owners
    for k in range(plan.objects.size):
        begin, end = plan.starts[k], plan.starts[k + 1]
        if owners[k, 0] != 0:
            if not _is_unchanged(owners[k, 0], owners[k, 1], owners[k, 2]):
                return False
            fields = array_at(owners[k, 0], np.uint64(_WORDS), _UINT64)
            if not _has_layout(fields, np.int64(owners[k, 3]), shapes, strides, begin, end):
                return False
        plan.grads[k] = 0
        if plan.objects[k] == plan.kinds[_NONE]:
            continue
        format_ = format_at(plan.objects[k], plan.kinds, needed)
        if format_ < 0:
            return False
        fields = array_at(plan.objects[k], np.uint64(_WORDS), _UINT64)
        if not _has_layout(fields, np.int64(bytes_of(format_)), shapes, strides, begin, end):
            return False
        address = data_at(plan.objects[k], plan.objects)
        size = np.uint64(plan.lengths[k]) * bytes_of(format_)
        if size and _shares(address, address + size, plan.begins, plan.ends):
            return False
        plan.grads[k], plan.grad_formats[k] = address, format_
    return True


def kinds() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the addresses of None, of the type ndarray and of the dtypes of gradients; 0 for a dtype not loaded."""
    dtypes = [np.dtype(name) for name in (np.float32, np.float64, np.uint16, np.float16)] + [bfloat16()]
    addresses = [0 if dtype is None else id(dtype) for dtype in dtypes]
    return np.array([id(None), id(np.ndarray), *addresses], dtype=np.uint64)


@functools.cache
def usable() -> bool:
    """Say whether array objects have the fields of NumPy's C ABI, by comparing these with what NumPy says."""
    is_known = sys.implementation.name == "cpython" and object.__basicsize__ == 16
    if not is_known or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
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
