"""The order in which an array's axes lie in memory, and arrays turned so that they lie in C order.

An array is dense when its elements fill one run of memory, each place once. Its axes may lie in that run in any order:
C order, Fortran order, or that of an image whose channels come last. Kernels work on such arrays with their axes turned
into C order. Imports nothing.
"""

from __future__ import annotations

from typing import Any

Axes = tuple[int, ...]
"""Numbers of axes, that with the largest stride first."""


def axes_of(array: Any) -> Axes | None:
    """Return the order of a dense array's axes in memory; None for C order.

    Args:
        array: a NumPy array, or a CudaArray. For one that is not dense, the answer has no meaning: `is_dense` says so.
    """
    if array.flags.c_contiguous:
        return None
    extents, strides = array.shape, array.strides
    # An axis of one element lies anywhere: first, so that it is between no two others.
    return tuple(sorted(range(array.ndim), key=lambda axis: (extents[axis] != 1, -strides[axis])))


def is_dense(array: Any) -> bool:
    """Say whether an array's elements fill one run of memory, whatever the order of its axes."""
    return bool(in_memory_order(array, axes_of(array)).flags.c_contiguous)


def in_memory_order(array: Any, axes: Axes | None) -> Any:
    """Return an array with its axes in an order; those of its own order make it one in C order."""
    return array if axes is None else array.transpose(axes)


def as_given(array: Any, axes: Axes | None) -> Any:
    """Return an array that `in_memory_order` has turned as it was before."""
    if axes is None:
        return array
    places = [0] * len(axes)
    for place, axis in enumerate(axes):
        places[axis] = place
    return array.transpose(tuple(places))
