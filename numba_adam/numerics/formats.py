"""The number formats of arrays: their names, sizes and dtypes. Imports NumPy alone.

A format is the meaning of the bits; a dtype is NumPy's name for them. NumPy itself has no bfloat16: such arrays have
the dtype of ml_dtypes (JAX and TensorFlow use it), or uint16, whose numbers are then the bits.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

import numpy as np


class Format(IntEnum):
    """A number format. Its value is the number that the CPU's kernels take, its label the name that users read."""

    FLOAT32 = 0
    FLOAT64 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    EIGHT_BIT = 4

    @classmethod
    def named(cls, label: str) -> Format:
        """Return the format with a label, such as "8bit"."""
        return cls(NAMES.index(label))

    @property
    def label(self) -> str:
        """Its name in options, messages and layouts of GPU kernels: "float32", ..., "8bit"."""
        return NAMES[self]

    @property
    def item_bytes(self) -> int:
        """The number of bytes of an element."""
        return ITEM_BYTES[self]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of arrays that the library creates: for bfloat16 uint16 unless ml_dtypes is loaded."""
        return dtype_of(self)


# The same numbers as plain integers, which compile to constants.
FLOAT32, FLOAT64, BFLOAT16, FLOAT16, EIGHT_BIT = map(int, Format)
NAMES = ("float32", "float64", "bfloat16", "float16", "8bit")
ITEM_BYTES = (4, 8, 2, 2, 1)

_BY_DTYPE = {
    np.dtype(np.float32): Format.FLOAT32,
    np.dtype(np.float64): Format.FLOAT64,
    np.dtype(np.float16): Format.FLOAT16,
    np.dtype(np.uint16): Format.BFLOAT16,
}


def format_of(dtype: np.dtype[Any]) -> Format | None:
    """Return the format of arrays of a dtype; None for a dtype without one."""
    known = _BY_DTYPE.get(dtype)
    return Format.BFLOAT16 if known is None and dtype == bfloat16() else known


def bfloat16() -> np.dtype[Any] | None:
    """Return bfloat16's dtype of ml_dtypes; None while that is not loaded, when there can be no such array."""
    module = sys.modules.get("ml_dtypes")
    scalar = getattr(module, "bfloat16", None)  # None during the import of the module
    return None if scalar is None else np.dtype(scalar)


def dtype_of(format_: int) -> np.dtype[Any]:
    """Return the dtype of arrays of a format that the library creates: see `Format.dtype`."""
    if format_ == Format.BFLOAT16:
        return bfloat16() or np.dtype(np.uint16)
    return np.dtype((np.float32, np.float64, np.uint16, np.float16, np.uint8)[format_])
