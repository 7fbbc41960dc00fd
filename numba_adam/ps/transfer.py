"""The parts of a transfer, and their validation on receipt, in client and server: order, sizes, checksum.

May import the checksums and the error tree; never NumPy or Numba.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from numba_adam.errors import CorruptTransferError, InvalidRequestError, ServiceError
from numba_adam.ps.checksum import SUPPORTED, new_checksum

_PIECE_BYTES = 1 << 19  # of a chunk, and its copy: both fit the cache next to a core while they are checked


class Chunk(NamedTuple):
    """A range of payload bytes, as a view of the received message."""

    offset: int
    """Position of the first byte within the payload."""

    data: memoryview
    """The bytes."""


class Trailer(NamedTuple):
    """The end of a transfer."""

    checksum: int | None
    """Checksum of the whole payload. None: no bytes travelled, so the sender computed none."""


Parts = Iterable[object]
"""The messages after a transfer's header: chunks, then a trailer. All others are refused on receipt.

It is a tuple if all have arrived.
"""


class Reader:
    """Validates one transfer as it arrives. A subclass copies the bytes.

    Args:
        total_bytes: the declared size.
        checksum_kind: a ChecksumKind of the protocol.

    Raises:
        InvalidRequestError: this version does not know the kind of checksum.
    """

    malformed: ClassVar[type[ServiceError]] = InvalidRequestError
    """The exception for parts that do not match the declared transfer."""

    def __init__(self, total_bytes: int, checksum_kind: int) -> None:
        if checksum_kind not in SUPPORTED and (checksum_kind or total_bytes):
            raise self.malformed(f"checksum_kind={checksum_kind}: expected one of {SUPPORTED}")
        self.checksum = 0
        """Checksum of the whole payload, after `finish`. 0 for an empty payload without a checksum."""

        self.received_bytes = 0
        """Number of bytes received so far."""

        self.total_bytes = total_bytes
        """The declared size."""

        self._running = new_checksum(checksum_kind) if checksum_kind else None  # an empty payload may have none

    def take(self, chunk: Chunk) -> None:
        """Validate a chunk and copy its bytes.

        Raises:
            InvalidRequestError: the chunk does not follow the one before, is empty, or exceeds the declared size. It
                was not copied.
        """
        size = chunk.data.nbytes
        self._check_position(chunk.offset, size)
        if size <= _PIECE_BYTES:
            self._take_piece(chunk.data)
            return
        for begin in range(0, size, _PIECE_BYTES):
            self._take_piece(chunk.data[begin : begin + _PIECE_BYTES])

    def _take_piece(self, data: memoryview) -> None:
        """Copy the next bytes and add them to the checksum."""
        data = self._put(data)
        if self._running is not None:
            self._running.update(data)
        self.received_bytes += data.nbytes

    def finish(self, checksum: int | None) -> None:
        """Validate the whole payload against its trailer; without a checksum in it, only its size.

        Raises:
            InvalidRequestError: bytes are missing.
            CorruptTransferError: the checksum differs.
        """
        if self.received_bytes != self.total_bytes:
            raise self.malformed(
                f"the transfer ended after {self.received_bytes} bytes: its header declared {self.total_bytes}"
            )
        if self._running is None:
            return
        self.checksum = self._running.value()
        if checksum is not None and self.checksum != checksum:
            raise CorruptTransferError(
                f"the payload's checksum is {self.checksum:#018x}, its trailer says {checksum:#018x}: bytes changed on "
                "the way; send it again"
            )

    def _put(self, data: memoryview) -> memoryview:
        """Copy the next bytes; return the copy that is still in the CPU's cache, for the checksum."""
        return data

    def _check_position(self, offset: int, size: int) -> None:
        if offset != self.received_bytes:
            kind = "overlaps the one before" if offset < self.received_bytes else "leaves a gap"
            raise self.malformed(
                f"a chunk at offset {offset} {kind}: the next one must be at offset {self.received_bytes}"
            )
        if not size:
            raise self.malformed(f"the chunk at offset {offset} is empty: a chunk has at least one byte")
        if offset + size > self.total_bytes:
            raise self.malformed(
                f"a chunk of {size} bytes at offset {offset} goes beyond the {self.total_bytes} bytes declared"
            )


def receive(parts: Parts, reader: Reader) -> None:
    """Read the chunks and the trailer that follow a header.

    Raises:
        InvalidRequestError: a part is missing, out of order or of an unknown kind. A client's reader raises
            CorruptTransferError instead.
        CorruptTransferError: see `Reader.finish`.
    """
    for part in parts:
        if isinstance(part, Chunk):
            reader.take(part)
        elif isinstance(part, Trailer):
            reader.finish(part.checksum)
            return
        else:
            raise reader.malformed(
                "expected a header, chunks, then a trailer: this message is neither a chunk nor a trailer"
            )
    raise reader.malformed("the stream ended before its trailer: send the whole transfer again")
