"""The sizes of what a staged update keeps beside the arrays: a word and a staging for each chunk. Imports nothing.

`cpu/kernels/staged.py` says what they are for.
"""

from __future__ import annotations

BLOCK = 256
"""Elements that are staged at a time: all their columns stay in the first-level cache."""

CHUNK = 1 << 15
"""Elements of a chunk. The stagings of all chunks take less than 1 % of the memory of the arrays."""


def words_of(elements: int, chunk: int = CHUNK) -> int:
    """Return the number of chunks of a column of so many elements. Each has a word of 8 bytes."""
    return -(-elements // chunk)


def staging_of(elements: int, columns: int, chunk: int = CHUNK) -> int:
    """Return the number of elements of the stagings of all chunks."""
    return words_of(elements, chunk) * columns * BLOCK
