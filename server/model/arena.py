"""A model's memory: one shared mapping with a header and then its flat arrays. Imports NumPy only.

    0                header: magic, format, dtype, element count, then offset of each array
    4096             param
    ...              exp_avg, exp_avg_sq, max_exp_avg_sq (with AMSGrad), pending (one staged gradient)

Each array starts at a multiple of 64 bytes, a cache line. The mapping is shared and has no name yet: a later release
can let other processes map it without a new layout.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = b"NBADARN\x00"
FORMAT = 1
HEADER_BYTES = 4096
ALIGNMENT = 64
_HEADER = struct.Struct("<8sIIQ5Q")  # magic, format, itemsize, element count, offsets (0: the array is not there)

FlatArray = npt.NDArray[Any]


class Layout(NamedTuple):
    """The positions of the arrays in the mapping, in bytes."""

    offsets: dict[str, int]
    """Array name -> position of its first byte."""

    total_bytes: int
    """Size of the whole mapping."""


def layout(element_count: int, itemsize: int, *, amsgrad: bool = False) -> Layout:
    """Return the layout of a model with that many elements."""
    names = ["param", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []), "pending"]
    offsets, position = {}, HEADER_BYTES
    for name in names:
        offsets[name] = position
        position += -(-element_count * itemsize // ALIGNMENT) * ALIGNMENT
    return Layout(offsets, position)


class Arena:
    """The flat arrays of one model, zero at first.

    Args:
        sizes: number of elements of each tensor, in the model's order.
        dtype: element type.
        amsgrad: whether there is a `max_exp_avg_sq`.

    Raises:
        MemoryError: the system does not have that much memory.
    """

    def __init__(self, sizes: Sequence[int], dtype: npt.DTypeLike, *, amsgrad: bool = False) -> None:
        self.dtype = np.dtype(dtype)
        self.sizes = tuple(sizes)
        self.element_count = sum(self.sizes)
        self.layout = layout(self.element_count, self.dtype.itemsize, amsgrad=amsgrad)
        try:
            self._mapping = mmap.mmap(-1, self.layout.total_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"cannot map {self.layout.total_bytes} bytes for a model's arrays: {error}") from error
        self._write_header()
        self.param = self._flat("param")
        self.exp_avg = self._flat("exp_avg")
        self.exp_avg_sq = self._flat("exp_avg_sq")
        self.max_exp_avg_sq = self._flat("max_exp_avg_sq") if amsgrad else None
        self.pending = self._flat("pending")

    @property
    def nbytes(self) -> int:
        """Size of the mapping."""
        return self.layout.total_bytes

    def state_arrays(self) -> dict[str, FlatArray]:
        """Return the arrays that make up the model's state, in the order of the mapping."""
        names = [name for name in self.layout.offsets if name != "pending"]
        return {name: getattr(self, name) for name in names}

    def views(self, flat: FlatArray) -> list[FlatArray]:
        """Return one view for each tensor into a flat array of all elements."""
        return split(flat, self.sizes)

    def _flat(self, name: str) -> FlatArray:
        return np.frombuffer(self._mapping, self.dtype, self.element_count, self.layout.offsets[name])

    def _write_header(self) -> None:
        offsets = list(self.layout.offsets.values())
        if "max_exp_avg_sq" not in self.layout.offsets:
            offsets.insert(3, 0)
        _HEADER.pack_into(self._mapping, 0, MAGIC, FORMAT, self.dtype.itemsize, self.element_count, *offsets)


def split(flat: FlatArray, sizes: Iterable[int]) -> list[FlatArray]:
    """Cut a flat array into consecutive views of the given sizes."""
    views, start = [], 0
    for size in sizes:
        views.append(flat[start : start + size])
        start += size
    return views
