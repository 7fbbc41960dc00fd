"""Random numbers for stochastic rounding, the same on every machine and any number of threads. Imports NumPy alone.

The functions are plain Python, and kernels compile them for every target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Word = Any  # a uint32: a NumPy scalar, or its compiled counterpart


def random_bits(key: Word, index: Word) -> Word:
    """Return 32 random bits that depend on the key and the index alone.

    The generator has no state, so any thread may draw any number. Multiplications and shifts mix the index with the
    key, as in the finalizer of MurmurHash3 (Appleby 2011).

    Args:
        key: identifies the stream: `stream_key` of a seed, a step and an array.
        index: the index of the number in the stream, modulo 2**32.
    """
    word = np.uint32(index ^ key)
    word = low_product(np.uint32(word ^ np.uint32(word >> np.uint32(16))), np.uint32(0x85EBCA6B))
    word = np.uint32(np.uint64(word) + np.uint64(key))
    word = low_product(np.uint32(word ^ np.uint32(word >> np.uint32(13))), np.uint32(0xC2B2AE35))
    word = low_product(np.uint32(word ^ np.uint32(word >> np.uint32(16))), np.uint32(0x9E3779B1))
    return np.uint32(word ^ np.uint32(word >> np.uint32(15)))


def rounding_bits(key: Word, index: Word) -> Word:
    """Return 16 random bits, for the rounding of the element with this index: half of a `rounding_word`."""
    word = rounding_word(key, np.uint32(index >> np.uint32(1)))
    is_odd = np.uint32(index & np.uint32(1)) != np.uint32(0)
    return np.uint32(word >> np.uint32(16)) if is_odd else np.uint32(word & np.uint32(0xFFFF))


def rounding_word(key: Word, index: Word) -> Word:
    """Return 32 random bits for the rounding of elements 2 * index (the lower half) and 2 * index + 1 (the upper half).

    Like `random_bits`, with multipliers for which two multiplications are enough (Wellons 2018, "Prospecting for hash
    functions"). tests/library/test_codecs.py states what these numbers pass.
    """
    word = np.uint32(index ^ key)
    word = low_product(np.uint32(word ^ np.uint32(word >> np.uint32(16))), np.uint32(0x21F0AAAD))
    word = np.uint32(np.uint64(word) + np.uint64(key))
    word = low_product(np.uint32(word ^ np.uint32(word >> np.uint32(15))), np.uint32(0xD35A2D97))
    return np.uint32(word ^ np.uint32(word >> np.uint32(15)))


def low_product(a: Word, b: Word) -> Word:
    """Return the lower 32 bits of a product of integers."""
    return np.uint32(np.uint64(np.uint64(a) * np.uint64(b)) & np.uint64(0xFFFFFFFF))


def stream_key(seed: int, step: int, number: int, column: int) -> int:
    """Return the key of the random numbers that round one array in one step.

    Args:
        seed: of the optimizer, 0 to 2**63 - 1.
        step: 1 for the first update.
        number: index of the parameter in its optimizer.
        column: index of the array among those of the parameter.
    """
    word = np.uint32(0)
    for part in (seed, step, number):
        word = random_bits(np.uint32(np.uint64(part) & np.uint64(0xFFFFFFFF)), word)
        word = random_bits(np.uint32(np.uint64(part) >> np.uint64(32)), word)
    return random_bits(np.uint32(column), word)  # type: ignore[no-any-return]
