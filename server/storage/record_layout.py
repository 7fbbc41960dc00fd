"""Where the parts of a segment's record lie. Imports the block size of direct writes."""

from __future__ import annotations

import struct

from numba_adam.server.storage.direct_file import BLOCK

MAGIC = b"NBADSEG2"
OLD_MAGIC = b"NBADSEG1"
MARK = b"NBADREC1"
FIELDS = struct.Struct("<8s5Q")  # mark, sizes of event and gradient, on disk before it, checksums of both
CHECK = struct.Struct("<Q")
HEAD_BYTES = FIELDS.size + CHECK.size
FILL = b"\xa5"
SECTOR = 512  # bytes that a disk writes as one
LARGE_BYTES = 1 << 18
"""Gradients of this size begin and end at multiples of a block."""

SMALL_ALIGNMENT = 8
"""What the positions of records are multiples of."""


def alignment_of(gradient_bytes: int) -> int:
    """Return what the position of a gradient and the end of its record are multiples of."""
    return BLOCK if gradient_bytes >= LARGE_BYTES else SMALL_ALIGNMENT


def places(begin: int, event_bytes: int, gradient_bytes: int, alignment: int) -> tuple[int, int]:
    """Return where the gradient of a record begins, and where the record ends."""
    gradient_at = begin + HEAD_BYTES + event_bytes
    if alignment == BLOCK:
        gradient_at = _aligned(gradient_at, BLOCK)
    return gradient_at, _aligned(gradient_at + gradient_bytes, alignment)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
