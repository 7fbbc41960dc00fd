"""A moment in 8 bits per element: codes, and one scale per block of them. Imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_adam.numerics.array import Array

BLOCK = 128  # elements that share a scale; the last block of an array may be shorter


@dataclass(frozen=True, slots=True, eq=False)
class EightBit:
    """A moment in 8 bits. docs/eight-bit-state.md says what each bit means."""

    codes: Array
    """uint8, of the parameter's shape."""

    scales: Array
    """float32, one per block."""

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> EightBit:
        """Return a moment of zeros."""
        codes = np.zeros(shape, dtype=np.uint8)
        return cls(codes, np.zeros(blocks_of(codes.size), dtype=np.float32))

    def copy(self) -> EightBit:
        """Return a copy."""
        return EightBit(self.codes.copy(), self.scales.copy())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The codes' dtype."""
        return self.codes.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.codes.shape)


def blocks_of(size: int) -> int:
    """Return the number of blocks of an array of `size` elements."""
    return -(-size // BLOCK)
