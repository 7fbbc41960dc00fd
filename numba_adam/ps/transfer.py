"""The parts of a transfer, and the checks that both ends make while one arrives: order, sizes, checksum.

Imports the checksums and the error tree; never NumPy or Numba.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from numba_adam.errors import CorruptTransferError, InvalidRequestError, ServiceError
from numba_adam.ps.checksum import SUPPORTED, new_checksum


class Chunk(NamedTuple):
    """A run of payload bytes, borrowed from the message they came in."""

    offset: int
    """Position of the first byte within the payload."""

    data: memoryview
    """The bytes."""


class Trailer(NamedTuple):
    """The end of a transfer."""

    checksum: int
    """Of the whole payload."""


Parts = Iterable[object]
"""What follows a transfer's header: chunks, then a trailer. Anything else is refused when it arrives."""


class Reader:
    """Checks one transfer as it arrives. A subclass puts the bytes in place.

    Args:
        total_bytes: the declared size.
        checksum_kind: a ChecksumKind of the protocol.

    Raises:
        InvalidRequestError: an unknown kind of checksum.
    """

    malformed: ClassVar[type[ServiceError]] = InvalidRequestError
    """Raised where the parts do not make up the declared transfer."""

    def __init__(self, total_bytes: int, checksum_kind: int) -> None:
        if checksum_kind not in SUPPORTED and (checksum_kind or total_bytes):
            raise self.malformed(f"checksum_kind={checksum_kind}: it must be one of {SUPPORTED}")
        self.checksum = 0
        """Of the whole payload, after `finish`; 0 for an empty payload without a checksum."""

        self.received_bytes = 0
        """Bytes taken so far."""

        self.total_bytes = total_bytes
        """The declared size."""

        self._running = new_checksum(checksum_kind) if checksum_kind else None  # an empty payload may have none

    def take(self, chunk: Chunk) -> None:
        """Check a chunk and put it in place.

        Raises:
            InvalidRequestError: it does not follow the one before, is empty, or exceeds the declared size. Nothing of
                it was copied.
        """
        self._check_place(chunk.offset, chunk.data.nbytes)
        data = self._put(chunk.data)
        if self._running is not None:
            self._running.update(data)
        self.received_bytes += data.nbytes

    def finish(self, checksum: int) -> None:
        """Check the whole payload against its trailer.

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
        if self.checksum != checksum:
            raise CorruptTransferError(
                f"the payload's checksum is {self.checksum:#018x}, its trailer says {checksum:#018x}: bytes changed on "
                "the way; send it again"
            )

    def _put(self, data: memoryview) -> memoryview:
        """Put the next bytes in place; return them from where the cache has them, for the checksum."""
        return data

    def _check_place(self, offset: int, size: int) -> None:
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
        InvalidRequestError: a part is missing, in another order or of another kind; a client's reader raises
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
                "a transfer is a header, chunks, a trailer: this message is neither a chunk nor a trailer"
            )
    raise reader.malformed("the stream ended before its trailer: the transfer must be sent again, whole")
