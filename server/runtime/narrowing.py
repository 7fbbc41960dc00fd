"""Parameters as the payload of a pull: as they are, or rounded to a 16-bit format, piece by piece while they are sent.

Imports NumPy and the library's conversion.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.cpu.conversion import convert

_NARROW = {"bfloat16": np.dtype(np.uint16), "float16": np.dtype(np.float16)}  # as the library names their arrays
_NARROW_BYTES = 2

Values = npt.NDArray[Any]


def payload_bytes(elements: int, itemsize: int, narrow_dtype: str) -> int:
    """Return the size of a payload; `narrow_dtype` is empty for parameters as they are."""
    return elements * (_NARROW_BYTES if narrow_dtype else itemsize)


def payload_pieces(values: Values, narrow_dtype: str, piece_bytes: int) -> Iterator[memoryview]:
    """Yield a payload in pieces. Each is valid until the next one.

    Args:
        values: all parameters, float32 or float64.
        narrow_dtype: "bfloat16" or "float16": the nearest numbers, ties to even; empty: the parameters as they are.
        piece_bytes: size of a piece, an even number; the last one may be shorter.
    """
    if not narrow_dtype:
        payload = values.view(np.uint8).data
        for offset in range(0, len(payload), piece_bytes):
            yield payload[offset : offset + piece_bytes]
        return
    count = piece_bytes // _NARROW_BYTES
    rounded = np.empty(min(count, values.size), _NARROW[narrow_dtype])
    for begin in range(0, values.size, count):
        piece = values[begin : begin + count]
        convert(piece, rounded[: piece.size])
        yield rounded[: piece.size].view(np.uint8).data
