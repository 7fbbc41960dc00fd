"""A model's memory: one shared mapping with a header and then its flat arrays. Imports NumPy and sizes.

    0                header: magic, format, dtype, element count, then offset of each array; at 2048 the versions, see
                     sharing
    4096             param
    ...              exp_avg, exp_avg_sq, max_exp_avg_sq (with AMSGrad), pending (one staged gradient)
    ...              words, staging: how far the update is (if the memory is a file that outlives the server)

A model with options has the arrays that `columns` says, and a header of format 3, which names them. Each array starts
at a multiple of 64 bytes, a cache line. The memory has no name, or it is a file, in which the next server finds the
arrays as a killed one left them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_adam.numerics.staging import FORMATS_CHUNK, staging_of, words_of
from numba_adam.server.model.columns import Column, columns_of, is_plain, staging_of_columns
from numba_adam.server.model.options import NO_OPTIONS
from numba_adam.server.model.sharing import VERSIONS_AT, Sharing
from numba_adam.settings.options import Options

MAGIC = b"NBADARN\x00"
FORMAT = 2
FORMAT_OF_OPTIONS = 3
HEADER_BYTES = 4096
ALIGNMENT = 64
PAGE = 4096  # without a file, the gradient begins at one, for direct writes to a journal
_WORD_BYTES = 8
_IN_HEADER = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "pending", "words", "staging")
_HEADER = struct.Struct("<8sIIQ7Q")  # magic, format, itemsize, element count, offsets (0: the array is not there)
_HEADER_OF_OPTIONS = struct.Struct("<8sIIQ")  # then, for each array, the following
_ENTRY = struct.Struct("<24s8sQQ")  # name, dtype, offset, size in bytes

FlatArray = npt.NDArray[Any]


class Layout(NamedTuple):
    """The positions of the arrays in the mapping, in bytes."""

    offsets: dict[str, int]
    """Array name -> position of its first byte."""

    total_bytes: int
    """Size of the whole mapping."""


def layout(element_count: int, itemsize: int, *, amsgrad: bool = False, is_staged: bool = False) -> Layout:
    """Return the layout of a model with that many elements; `is_staged`: with room for a staged update."""
    return layout_of(columns_of([element_count], np.dtype(f"f{itemsize}"), amsgrad), NO_OPTIONS, is_staged=is_staged)


def layout_of(columns: Sequence[Column], options: Options, *, is_staged: bool) -> Layout:
    """Return the layout of a model with these arrays; `is_staged`: with room for a staged update."""
    sizes = {column.name: column.nbytes for column in columns} | {"pending": columns[0].nbytes}
    if is_staged:
        words, nbytes = _staging(columns, options)
        sizes |= {"words": words * _WORD_BYTES, "staging": nbytes}
    offsets, position = {}, HEADER_BYTES
    for name, nbytes in sizes.items():
        if name == "pending" and not is_staged:
            position = -(-position // PAGE) * PAGE
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
        options: the formats of the state.

    Raises:
        MemoryError: the system does not have that much memory.
        ValueError: the file has another header, which is not zero either.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        amsgrad: bool = False,
        file: int | None = None,
        options: Options = NO_OPTIONS,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.sizes = tuple(sizes)
        self.element_count = sum(self.sizes)
        self.is_staged = file is not None
        self.columns = columns_of(self.sizes, self.dtype, amsgrad, options)
        """The arrays that make up the model's state, in the order of the mapping."""

        self.is_plain = is_plain(options)
        """Whether they are the parameters and moments of the same dtype."""

        self.layout = layout_of(self.columns, options, is_staged=self.is_staged)
        try:
            self.sharing = Sharing(file, self.layout.total_bytes)
            """For processes on this machine that read the parameters."""

            flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if self.sharing.descriptor < 0 else 0)
            self._mapping = mmap.mmap(self.sharing.descriptor, self.layout.total_bytes, flags=flags)
        except OSError as error:
            raise MemoryError(f"cannot map {self.layout.total_bytes} bytes for a model's arrays: {error}") from error
        self._write_header()
        self.sharing.use(np.frombuffer(self._mapping, np.uint64, 2, VERSIONS_AT))
        self._arrays = {each.name: self._flat(each.name, each.dtype, sum(each.sizes)) for each in self.columns}
        self.param, self.exp_avg, self.exp_avg_sq = (self._arrays[name] for name in ("param", "exp_avg", "exp_avg_sq"))
        self.max_exp_avg_sq = self._arrays.get("max_exp_avg_sq")
        self.ema = self._arrays.get("ema")
        self.pending = self._flat("pending", self.dtype, self.element_count)
        words, staging = _staging(self.columns, options)
        self.words = self._flat("words", np.uint64, words) if self.is_staged else None
        own = self.dtype if self.is_plain else np.dtype(np.uint8)
        self.staging = self._flat("staging", own, staging // own.itemsize) if self.is_staged else None

    @property
    def nbytes(self) -> int:
        """Size of the mapping."""
        return self.layout.total_bytes

    def state_arrays(self) -> dict[str, FlatArray]:
        """Return the arrays that make up the model's state, in the order of the mapping."""
        return dict(self._arrays)

    def views(self, flat: FlatArray) -> list[FlatArray]:
        """Return one view for each tensor into a flat array of all elements."""
        return split(flat, self.sizes)

    def _flat(self, name: str, dtype: npt.DTypeLike, count: int) -> FlatArray:
        return np.frombuffer(self._mapping, dtype, count, self.layout.offsets[name])

    def _write_header(self) -> None:
        """Write the header, unless the file has it already."""
        header = self._header() if self.is_plain else self._header_of_options()
        found = self._mapping[: len(header)]
        if found != header and any(found):
            raise ValueError("the file's header is of other arrays")
        self._mapping[: len(header)] = header

    def _header(self) -> bytes:
        offsets = [self.layout.offsets.get(name, 0) for name in _IN_HEADER]
        return _HEADER.pack(MAGIC, FORMAT, self.dtype.itemsize, self.element_count, *offsets)

    def _header_of_options(self) -> bytes:
        sizes = {each.name: each.nbytes for each in self.columns}
        dtypes = {each.name: each.dtype.str.encode() for each in self.columns}
        entries = [
            _ENTRY.pack(name.encode(), dtypes.get(name, b""), offset, sizes.get(name, 0))
            for name, offset in self.layout.offsets.items()
        ]
        first = _HEADER_OF_OPTIONS.pack(MAGIC, FORMAT_OF_OPTIONS, self.dtype.itemsize, self.element_count)
        return (first + b"".join(entries)).ljust(VERSIONS_AT, b"\0")  # a dozen entries take half of that


def _staging(columns: Sequence[Column], options: Options) -> tuple[int, int]:
    """Return the number of words of a staged update, and the bytes of its stagings."""
    elements, itemsize = sum(columns[0].sizes), columns[0].dtype.itemsize
    if is_plain(options):
        return words_of(elements), staging_of(elements, len(columns)) * itemsize
    words = words_of(elements, FORMATS_CHUNK)
    return words, words * staging_of_columns(columns).total_bytes


def split(flat: FlatArray, sizes: Iterable[int]) -> list[FlatArray]:
    """Cut a flat array into consecutive views of the given sizes."""
    views, start = [], 0
    for size in sizes:
        views.append(flat[start : start + size])
        start += size
    return views
