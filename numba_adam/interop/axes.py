"""The order of an array's axes in memory, and views with the axes transposed into C order.

An array is dense if its elements fill one block of memory without gaps or repeats. Its axes may have any order in
memory: C order, Fortran order, or channels last. Kernels work on views of dense arrays in C order. Imports nothing.
"""

from __future__ import annotations

from typing import Any

Axes = tuple[int, ...]
"""Indices of axes, in descending order of their strides."""


def axes_of(array: Any) -> Axes | None:
    """Return the order of a dense array's axes in memory; None for C order.

    Args:
        array: a NumPy array or a CudaArray. It must be dense; see `is_dense`.
    """
    if array.flags.c_contiguous:
        return None
    extents, strides = array.shape, array.strides
    # The stride of an axis of length one is arbitrary. Put such axes first, so that they separate no others.
    return tuple(sorted(range(array.ndim), key=lambda axis: (extents[axis] != 1, -strides[axis])))


def is_dense(array: Any) -> bool:
    """Return whether an array's elements fill one block of memory, in any order of its axes."""
    return bool(in_memory_order(array, axes_of(array)).flags.c_contiguous)


def in_memory_order(array: Any, axes: Axes | None) -> Any:
    """Return a view with the axes in the given order. With the result of `axes_of`, the view is in C order."""
    return array if axes is None else array.transpose(axes)


def as_given(array: Any, axes: Axes | None) -> Any:
    """Undo `in_memory_order`: return a view with the axes in their original order."""
    if axes is None:
        return array
    places = [0] * len(axes)
    for place, axis in enumerate(axes):
        places[axis] = place
    return array.transpose(tuple(places))
