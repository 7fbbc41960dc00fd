"""Validates arrays that are updated together. May import NumPy, the error tree and `numba_adam.numerics`."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import DtypeError, LayoutError, OverlapError, ShapeError
from numba_adam.numerics.array import Array

_UNDO = (
    "the optimizer updates it in place; undo the change, or make a new optimizer for it and call "
    "load_state_dict(old.state_dict()) on that"
)


class Watched(NamedTuple):
    """The caller's array, with its address, shape, strides and dtype when it was borrowed."""

    array: Array
    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


def watched(array: Array, name: str) -> Watched:
    """Return an array with its current address, shape, strides and dtype."""
    return Watched(array, name, array.ctypes.data, array.shape, array.strides, array.dtype)


def check_unchanged(before: Watched) -> None:
    """Refuse an array object whose shape, strides, dtype or memory were replaced, as `array.shape = ...` does.

    Raises:
        DtypeError, ShapeError, LayoutError: one of them was replaced.
    """
    array, name = before.array, before.name
    if array.dtype != before.dtype:
        raise DtypeError(f"{name} has dtype {array.dtype}, expected {before.dtype} as when it was borrowed: {_UNDO}")
    if array.shape != before.shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {before.shape} as when it was borrowed: {_UNDO}")
    if array.strides != before.strides:
        raise LayoutError(
            f"{name} has strides {array.strides}, expected {before.strides} as when it was borrowed: {_UNDO}"
        )
    if array.ctypes.data != before.address:
        raise LayoutError(f"{name} has other memory than when it was borrowed: {_UNDO}")


def check_shape(array: Array, name: str, param: Array, param_name: str) -> None:
    """Refuse an array whose shape differs from its parameter's.

    Raises:
        ShapeError: the shapes differ.
    """
    if array.shape != param.shape:
        raise ShapeError(f"{name} has shape {array.shape}: it must have the shape of {param_name}, {param.shape}")


def check_like(array: Array, name: str, param: Array, param_name: str) -> None:
    """Refuse an array whose shape or dtype differs from its parameter's.

    Raises:
        ShapeError: the shapes differ.
        DtypeError: the dtypes differ.
    """
    check_shape(array, name, param, param_name)
    if array.dtype != param.dtype:
        raise DtypeError(
            f"{name} has dtype {array.dtype}: it must have the dtype of {param_name}, {param.dtype}; "
            f"convert it with .astype(numpy.{param.dtype})"
        )


class Extents:
    """Address ranges of arrays that share no memory: `begins` and `ends`, uint64, ascending."""

    def __init__(self, arrays: Sequence[Array], names: Sequence[str]) -> None:
        """Refuse arrays that share memory.

        Raises:
            OverlapError: two arrays share memory.
        """
        begins = np.array([array.ctypes.data for array in arrays], dtype=np.uint64)
        ends = begins + np.array([array.nbytes for array in arrays], dtype=np.uint64)
        order = in_memory(begins, ends, names)
        self.begins, self.ends = begins[order], ends[order]
        self._listed_begins: list[int] = self.begins.tolist()  # NumPy is ten times slower at a search for one number
        self._listed_ends: list[int] = self.ends.tolist()
        self._names = [names[int(index)] for index in order]

    def are_apart(self, begins: Sequence[int], sizes: Sequence[int]) -> bool:
        """Return whether none of these memory blocks shares memory with an array of the set."""
        listed = self._listed_begins
        befores = [bisect.bisect_left(listed, begin + size) - 1 for begin, size in zip(begins, sizes, strict=True)]
        return not any(
            size and before >= 0 and self._listed_ends[before] > begin
            for before, begin, size in zip(befores, begins, sizes, strict=True)
        )

    def check_apart(self, array: Array, name: str) -> None:
        """Refuse an array that shares memory with one of the set.

        Raises:
            OverlapError: they share memory.
        """
        begin, size = int(array.ctypes.data), array.nbytes
        before = (
            bisect.bisect_left(self._listed_begins, begin + size) - 1
        )  # the last array that begins before the end of this one
        if size and before >= 0 and self._listed_ends[before] > begin:
            raise _shared(name, self._names[before])


def in_memory(begins: Array, ends: Array, names: Sequence[str]) -> Array:
    """Return the indices of arrays in the order of their addresses, without empty arrays.

    Args:
        begins: the address where each array begins, uint64.
        ends: the address after its last byte, uint64.
        names: the names of the arrays in error messages.

    Raises:
        OverlapError: two arrays share memory.
    """
    order = np.flatnonzero(ends > begins)
    order = order[np.argsort(begins[order], kind="stable")]
    clashes = np.flatnonzero(ends[order[:-1]] > begins[order[1:]])
    if clashes.size:
        first = clashes[0]
        raise _shared(names[order[first]], names[order[first + 1]])
    return order


def _shared(one: str, other: str) -> OverlapError:
    return OverlapError(f"{one} and {other} share memory: give each its own array, for instance with .copy()")
