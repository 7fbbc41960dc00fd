"""Payloads in 16-bit formats: float32 and float64 arrays rounded while they are sent, and widened while they arrive.

Both go block by block, so that what is converted stays in the CPU's cache. May import NumPy and its neighbours here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.client.formats import Array, write
from numba_adam.client.progress import Progress
from numba_adam.client.transfer import Download
from numba_adam.errors import DtypeError
from numba_adam.numerics.formats import Format

_BLOCK = 1 << 15  # elements: numbers, codes and what NumPy makes in between fit the cache of a core
_ITEM_BYTES = 2
_FORMATS = {"bfloat16": Format.BFLOAT16, "float16": Format.FLOAT16}
_HALF_LESS, _ONE, _SHIFT = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)


Codes = npt.NDArray[np.uint16]


def wire_format(wire_dtype: str | None) -> Format | None:
    """Return the format of a name that a user gave; None for the model's own.

    Raises:
        DtypeError: it is none of the 16-bit formats.
    """
    if wire_dtype is None:
        return None
    if wire_dtype not in _FORMATS:
        raise DtypeError(f"wire_dtype: expected {', '.join(map(repr, _FORMATS))} or None, got {wire_dtype!r}")
    return _FORMATS[wire_dtype]


class Rounded:
    """An array's elements in a 16-bit format, as bytes: rounded when they are needed, to the nearest, ties to even.

    Args:
        array: a C-contiguous float32 or float64 array.
        narrow: the format.
    """

    def __init__(self, array: Array, narrow: Format) -> None:
        self._flat, self._narrow = array.reshape(-1), narrow
        self.nbytes = array.size * _ITEM_BYTES
        """The number of bytes."""

    def write(self, start: int, target: memoryview) -> None:
        """Write the bytes from `start` on into a target; both ends lie between two elements."""
        codes = np.frombuffer(target, np.uint16)
        first = start // _ITEM_BYTES
        values = self._flat[first : first + codes.size]
        scratch = np.empty(min(_BLOCK, values.size), np.uint32)
        for begin in range(0, values.size, _BLOCK):
            block = values[begin : begin + _BLOCK]
            _round(block, codes[begin : begin + block.size], self._narrow, scratch[: block.size])


def _round(values: Array, codes: Codes, narrow: Format, scratch: npt.NDArray[np.uint32]) -> None:
    if narrow is Format.BFLOAT16 and values.dtype == np.float32 and not np.isnan(values.max()):
        bits = values.view(np.uint32)
        np.right_shift(bits, _SHIFT, out=scratch)
        scratch &= _ONE
        scratch += _HALF_LESS
        scratch += bits
        scratch >>= _SHIFT
        codes[:] = scratch
    else:
        write({"": values}, {"": codes if narrow is Format.BFLOAT16 else codes.view(np.float16)})


class WideningDownload(Download):
    """One incoming transfer in a 16-bit format, widened into arrays chunk by chunk; exact.

    Args:
        arrays: C-contiguous float32 or float64 arrays; the payload fills them in order.
        narrow: the format of the payload.
        total_bytes, checksum_kind, report: as `Download` takes them.
    """

    def __init__(
        self, arrays: Iterable[Array], narrow: Format, total_bytes: int, checksum_kind: int, report: Progress
    ) -> None:
        super().__init__([], total_bytes, checksum_kind, report)
        self._targets = [array.reshape(-1) for array in arrays]
        self._target = self._begin = 0  # the array of the next element, and its place there
        self._narrow = narrow
        self._codes = np.empty(_BLOCK, np.uint16)  # a block where the CPU can read it fast: messages lie anywhere
        self._first_byte = b""  # of an element that the last bytes have divided

    def _put(self, data: memoryview) -> memoryview:
        raw = np.frombuffer(data, np.uint8)
        if self._first_byte:
            self._put_codes(np.frombuffer(self._first_byte + bytes(data[:1]), np.uint16))
            raw = raw[1:]
        whole = raw.size // _ITEM_BYTES * _ITEM_BYTES
        self._first_byte = raw[whole:].tobytes()
        self._put_codes(raw[:whole].view(np.uint16))
        return data

    def _put_codes(self, codes: Codes) -> None:
        """Widen codes, which may be unaligned, to the next elements."""
        while codes.size:
            target = self._targets[self._target]
            block = self._codes[: min(codes.size, target.size - self._begin, _BLOCK)]
            block[:] = codes[: block.size]
            _widen(block, target[self._begin : self._begin + block.size], self._narrow)
            codes = codes[block.size :]
            self._begin += block.size
            if self._begin == target.size:
                self._target, self._begin = self._target + 1, 0


def _widen(codes: Codes, target: npt.NDArray[Any], narrow: Format) -> None:
    if narrow is Format.FLOAT16:
        target[:] = codes.view(np.float16)
    elif target.dtype == np.float32:
        np.left_shift(codes, _SHIFT, out=target.view(np.uint32), dtype=np.uint32)
    else:
        target[:] = np.left_shift(codes, _SHIFT, dtype=np.uint32).view(np.float32)
