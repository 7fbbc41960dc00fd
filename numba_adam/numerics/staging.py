"""The sizes of what a staged update keeps beside the arrays: a word and a staging for each chunk.

Imports its neighbours.

`cpu/kernels/staged.py` and `cpu/kernels/staged_formats.py` say what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from numba_adam.numerics.eight_bit import blocks_of
from numba_adam.numerics.formats import EIGHT_BIT, ITEM_BYTES

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


FORMATS_BLOCK = 1 << 10
"""Elements that are staged at a time where the state has other formats than the parameters: several 8-bit blocks."""

FORMATS_CHUNK = 1 << 17
"""Elements of a chunk there. A staging has one block of each array, so it takes less than 1 % here too."""

_LINE_BYTES = 64
_SCALE_BYTES = 4


class StagingLayout(NamedTuple):
    """The positions of the arrays in a chunk's staging, in bytes."""

    offsets: tuple[int, ...]
    """For each array, then for the scales of each: where it begins; 0 where there is none."""

    total_bytes: int
    """Size of the staging."""


def staging_layout(formats: Sequence[int | None], block: int = FORMATS_BLOCK) -> StagingLayout:
    """Return the layout of a staging of one block.

    Args:
        formats: the number format of each array; None: there is no such array.
        block: elements of a block.
    """
    sizes = [0 if format_ is None else block * ITEM_BYTES[format_] for format_ in formats]
    sizes += [_SCALE_BYTES * blocks_of(block) if format_ == EIGHT_BIT else 0 for format_ in formats]
    offsets, position = [], 0
    for size in sizes:
        offsets.append(position if size else 0)
        position += -(-size // _LINE_BYTES) * _LINE_BYTES
    return StagingLayout(tuple(offsets), position)
