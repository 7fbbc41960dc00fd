"""Receives gradients in 16-bit formats and widens them, chunk by chunk, to the model's element type; exact.

Imports NumPy, the receiver and the kernel for float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.cpu.kernels.widen import widen_float16
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.receive import Receiver

_BLOCK = 1 << 14  # elements: codes and values together fit the cache next to the core
_ITEM_BYTES = 2

Codes = npt.NDArray[np.uint16]
Words = npt.NDArray[np.uint32]


def _widen_bfloat16(codes: Codes, words: Words) -> None:
    np.left_shift(codes, 16, out=words, dtype=np.uint32)


_WIDEN: dict[str, Callable[[Codes, Words], object]] = {"bfloat16": _widen_bfloat16, "float16": widen_float16}


class WideningReceiver(Receiver):
    """Receives one transfer of 16-bit values. The checksum is that of the bytes as they were sent.

    Args:
        target: memory for the values, in the model's element type.
        dtype: the model's element type.
        tensors, checksum_kind, what, limit: see `Receiver`; the limit is that of the widened values.
        narrow_dtype: element type of the payload: "bfloat16" or "float16".
        largest: see `Receiver`.
    """

    def __init__(
        self,
        target: npt.NDArray[np.uint8],
        dtype: np.dtype[Any],
        tensors: Sequence[Tensor],
        checksum_kind: int,
        what: str,
        limit: float = math.inf,
        *,
        narrow_dtype: str,
        largest: float = math.inf,
    ) -> None:
        super().__init__(target, dtype, tensors, checksum_kind, what, limit, _ITEM_BYTES, largest)
        self._widen = _WIDEN[narrow_dtype]
        self._codes = np.empty(_BLOCK, np.uint16)
        self._values = np.empty(_BLOCK, np.float32) if dtype.itemsize != np.dtype(np.float32).itemsize else None
        self._first_byte = b""  # of an element that the last chunk has divided

    def _put(self, data: memoryview) -> memoryview:
        begin = self.received_bytes // _ITEM_BYTES  # the first element that is not complete
        raw = np.frombuffer(data, np.uint8)
        if self._first_byte:
            self._put_codes(np.frombuffer(self._first_byte + bytes(data[:1]), "<u2"), begin)
            begin, raw = begin + 1, raw[1:]
        whole = raw.size // _ITEM_BYTES * _ITEM_BYTES
        self._first_byte = raw[whole:].tobytes()
        self._put_codes(raw[:whole].view("<u2"), begin)
        return data

    def _put_codes(self, codes: Codes, begin: int) -> None:
        """Widen codes, which may be unaligned, to the elements from `begin` on."""
        for start in range(0, codes.size, _BLOCK):
            block = self._codes[: min(_BLOCK, codes.size - start)]
            block[:] = codes[start : start + block.size]
            target = self._elements[begin + start : begin + start + block.size]
            if self._values is None:
                self._widen(block, target.view(np.uint32))
            else:
                values = self._values[: block.size]
                self._widen(block, values.view(np.uint32))
                with np.errstate(invalid="ignore"):  # a NaN stays one, and is found by the check
                    target[:] = values
