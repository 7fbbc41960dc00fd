"""Three operations that each target compiles in its own way; everything else compiles from the same source.

Kernels replace these names (see `bind`). Imports NumPy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Real = Any  # a NumPy scalar, or its compiled counterpart
Float32 = Any  # likewise, float32
Word = Any  # likewise, uint32


def product(a: Real, b: Real) -> Real:
    """Return a * b, rounded on its own: never fused with a following addition.

    On a GPU this is an instruction that the compiler cannot contract to a fused multiply-add.
    """
    return a * b


def root(value: Real) -> Real:
    """Return the square root, correctly rounded."""
    return np.sqrt(value)


def choose(condition: Any, value: Real, other: Real) -> Real:
    """Return `value` if a condition is true, else `other`. A vector's lanes choose each on their own."""
    return value if condition else other


def bits_of(value: Float32) -> Word:
    """Return the bits of a float32."""
    return np.float32(value).view(np.uint32)


def from_bits(bits: Word) -> Float32:
    """Return the float32 with these bits."""
    return np.uint32(bits).view(np.float32)
