"""The number formats of arrays: their names, their sizes, and the dtypes they come as. Imports NumPy alone.

A format is what the bits mean; a dtype is what NumPy calls them. NumPy itself has no bfloat16: such arrays come with
the dtype of ml_dtypes (JAX and TensorFlow use it), or as uint16, which then holds the bits.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

FLOAT32, FLOAT64, BFLOAT16, FLOAT16, EIGHT_BIT = range(5)
NAMES = ("float32", "float64", "bfloat16", "float16", "8bit")
ITEM_BYTES = (4, 8, 2, 2, 1)

_BY_DTYPE = {
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.float64): FLOAT64,
    np.dtype(np.float16): FLOAT16,
    np.dtype(np.uint16): BFLOAT16,
}


def format_of(dtype: np.dtype[Any]) -> int | None:
    """Return the format of arrays of a dtype, None for those that are none of ours."""
    known = _BY_DTYPE.get(dtype)
    return BFLOAT16 if known is None and dtype == bfloat16() else known


def bfloat16() -> np.dtype[Any] | None:
    """Return the dtype of ml_dtypes; None while nobody has loaded it, for then there is no such array."""
    module = sys.modules.get("ml_dtypes")
    scalar = getattr(module, "bfloat16", None)  # None while the module is half-way through its import
    return None if scalar is None else np.dtype(scalar)


def dtype_of(format_: int) -> np.dtype[Any]:
    """Return the dtype in which the library makes arrays of a format: uint16 for bfloat16 where ml_dtypes is absent."""
    if format_ == BFLOAT16:
        return bfloat16() or np.dtype(np.uint16)
    return np.dtype((np.float32, np.float64, np.uint16, np.float16, np.uint8)[format_])
