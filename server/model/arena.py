"""A model's memory: one shared mapping with a header and then its flat arrays. Imports NumPy and sizes.

    0                header: magic, format, dtype, element count, then offset of each array
    4096             param
    ...              exp_avg, exp_avg_sq, max_exp_avg_sq (with AMSGrad), pending (one staged gradient)
    ...              words, staging: how far the update is (if the memory is a file that outlives the server)

Each array starts at a multiple of 64 bytes, a cache line. The memory has no name, or it is a file, in which the next
server finds the arrays as a killed one left them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_adam.numerics.staging import staging_of, words_of

MAGIC = b"NBADARN\x00"
FORMAT = 2
HEADER_BYTES = 4096
ALIGNMENT = 64
_WORD_BYTES = 8
_NOT_STATE = ("pending", "words", "staging")
_IN_HEADER = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "pending", "words", "staging")
_HEADER = struct.Struct("<8sIIQ7Q")  # magic, format, itemsize, element count, offsets (0: the array is not there)

FlatArray = npt.NDArray[Any]


class Layout(NamedTuple):
    """The positions of the arrays in the mapping, in bytes."""

    offsets: dict[str, int]
    """Array name -> position of its first byte."""

    total_bytes: int
    """Size of the whole mapping."""


def layout(element_count: int, itemsize: int, *, amsgrad: bool = False, is_staged: bool = False) -> Layout:
    """Return the layout of a model with that many elements; `is_staged`: with room for a staged update."""
    columns = ["param", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    sizes = dict.fromkeys([*columns, "pending"], element_count * itemsize)
    if is_staged:
        sizes["words"] = words_of(element_count) * _WORD_BYTES
        sizes["staging"] = staging_of(element_count, len(columns)) * itemsize
    offsets, position = {}, HEADER_BYTES
    for name, nbytes in sizes.items():
        offsets[name] = position
        position += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return Layout(offsets, position)


class Arena:
    """The flat arrays of one model, zero at first.

    Args:
        sizes: number of elements of each tensor, in the model's order.
        dtype: element type.
        amsgrad: whether there is a `max_exp_avg_sq`.
        file: descriptor of a file of the layout's size that has the arrays; None: memory without a name.

    Raises:
        MemoryError: the system does not have that much memory.
        ValueError: the file has another header, which is not zero either.
    """

    def __init__(
        self, sizes: Sequence[int], dtype: npt.DTypeLike, *, amsgrad: bool = False, file: int | None = None
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.sizes = tuple(sizes)
        self.element_count = sum(self.sizes)
        self.is_staged = file is not None
        self.layout = layout(self.element_count, self.dtype.itemsize, amsgrad=amsgrad, is_staged=self.is_staged)
        flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if file is None else 0)
        try:
            self._mapping = mmap.mmap(-1 if file is None else file, self.layout.total_bytes, flags=flags)
        except OSError as error:
            raise MemoryError(f"cannot map {self.layout.total_bytes} bytes for a model's arrays: {error}") from error
        self._write_header()
        self.param = self._flat("param")
        self.exp_avg = self._flat("exp_avg")
        self.exp_avg_sq = self._flat("exp_avg_sq")
        self.max_exp_avg_sq = self._flat("max_exp_avg_sq") if amsgrad else None
        self.pending = self._flat("pending")
        self.words = self._flat("words", np.uint64, words_of(self.element_count)) if self.is_staged else None
        columns = len(self.state_arrays())
        staging = staging_of(self.element_count, columns)
        self.staging = self._flat("staging", self.dtype, staging) if self.is_staged else None

    @property
    def nbytes(self) -> int:
        """Size of the mapping."""
        return self.layout.total_bytes

    def state_arrays(self) -> dict[str, FlatArray]:
        """Return the arrays that make up the model's state, in the order of the mapping."""
        names = [name for name in self.layout.offsets if name not in _NOT_STATE]
        return {name: getattr(self, name) for name in names}

    def views(self, flat: FlatArray) -> list[FlatArray]:
        """Return one view for each tensor into a flat array of all elements."""
        return split(flat, self.sizes)

    def _flat(self, name: str, dtype: npt.DTypeLike | None = None, count: int | None = None) -> FlatArray:
        size = self.element_count if count is None else count
        return np.frombuffer(self._mapping, dtype or self.dtype, size, self.layout.offsets[name])

    def _write_header(self) -> None:
        """Write the header, unless the file has it already."""
        offsets = [self.layout.offsets.get(name, 0) for name in _IN_HEADER]
        header = _HEADER.pack(MAGIC, FORMAT, self.dtype.itemsize, self.element_count, *offsets)
        found = self._mapping[: len(header)]
        if found != header and any(found):
            raise ValueError("the file's header is of other arrays")
        self._mapping[: len(header)] = header


def split(flat: FlatArray, sizes: Iterable[int]) -> list[FlatArray]:
    """Cut a flat array into consecutive views of the given sizes."""
    views, start = [], 0
    for size in sizes:
        views.append(flat[start : start + size])
        start += size
    return views
