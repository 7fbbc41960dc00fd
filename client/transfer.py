"""Payloads as streams of chunks: uploads with a checksum, and validated downloads into arrays.

May import NumPy and `numba_adam.ps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt

from numba_adam.client.pieces import Made, bytes_of, cut, is_made, piece_of, views, whole
from numba_adam.client.progress import Progress
from numba_adam.errors import CorruptTransferError
from numba_adam.ps.checksum import new_checksum
from numba_adam.ps.framing import encode_chunk, encode_trailer
from numba_adam.ps.transfer import Chunk, Reader
from numba_adam.ps.whole import encode_whole, size_of_whole

CHUNK_BYTES = (1 << 21) - (1 << 12)
"""Payload bytes of a chunk that is sent. Each message costs both ends several switches of threads; every release of the
server takes messages of 2 MiB."""


class Upload:
    """The messages of one outgoing transfer, created on demand.

    Each chunk is copied once, into its message. The checksum reads that copy, which is still in the CPU's cache.
    """

    def __init__(
        self,
        header: bytes,
        arrays: Iterable[npt.NDArray[Any] | Made],
        checksum_kind: int,
        report: Progress,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.failure: Exception | None = None
        """The exception of the progress callable, which gRPC would report as a cancelled call."""
        self.header = header
        """The encoded message with the header."""

        self._kind, self._report, self._chunk_bytes = checksum_kind, report, chunk_bytes
        self._pieces = [piece_of(array) for array in arrays]

    def report(self, done: int, total: int) -> None:
        """Report progress; note what the callable raises."""
        try:
            self._report(done, total)
        except Exception as error:
            self.failure = error
            raise

    def whole(self, largest_bytes: int) -> bytes | None:
        """Return the transfer as one message; None if it would be larger than `largest_bytes`."""
        total = sum(piece.nbytes for piece in self._pieces)
        if size_of_whole(self.header, total) > largest_bytes:
            return None
        checksum, payload = new_checksum(self._kind), views(whole(self._pieces), memoryview(bytearray(total)))
        for part in payload:
            checksum.update(part)
        if total:
            self._report(total, total)
        return encode_whole(self.header, checksum.value(), *payload)

    def messages(self) -> Iterator[bytes]:
        """Yield the header, the chunks and the trailer."""
        try:
            yield from self._messages()
        except Exception as error:
            self.failure = error
            raise

    def _messages(self) -> Iterator[bytes]:
        yield self.header
        checksum = new_checksum(self._kind)
        total = sum(piece.nbytes for piece in self._pieces)
        # One memory for what is made: with new memory for each chunk, most of the time would go into the system's
        # clearing of its pages.
        scratch = memoryview(bytearray(min(total, self._chunk_bytes) if is_made(whole(self._pieces)) else 0))
        offset = 0
        for run in cut(self._pieces, self._chunk_bytes):
            size = sum(part.nbytes for part in run)
            raw = encode_chunk(offset, *views(run, scratch))
            checksum.update(memoryview(raw)[-size:])
            offset += size
            yield raw
            self._report(offset, total)
        yield encode_trailer(checksum.value())


class Download(Reader):
    """One incoming transfer, copied into arrays chunk by chunk.

    Args:
        arrays: C-contiguous arrays; the payload fills them in order.
        total_bytes: the declared size.
        checksum_kind: a ChecksumKind of the protocol.
        report: called after each chunk.
    """

    malformed = CorruptTransferError

    def __init__(
        self, arrays: Iterable[npt.NDArray[Any]], total_bytes: int, checksum_kind: int, report: Progress
    ) -> None:
        super().__init__(total_bytes, checksum_kind)
        self._places = [bytes_of(array) for array in arrays]
        self._report = report
        self._place = self._start = 0  # where the next byte goes: index of the array, and offset in it

    def take(self, chunk: Chunk) -> None:
        """Validate a chunk, copy it into the arrays and report progress.

        Raises:
            CorruptTransferError: the chunk does not follow the one before, is empty, or exceeds the declared size.
        """
        super().take(chunk)
        self._report(self.received_bytes, self.total_bytes)

    def _put(self, data: memoryview) -> memoryview:
        rest = data
        while rest.nbytes:
            place = self._places[self._place]
            room = place.nbytes - self._start
            part = rest[:room]
            place[self._start : self._start + part.nbytes] = part
            self._start += part.nbytes
            rest = rest[room:]
            if part.nbytes == room:
                self._place, self._start = self._place + 1, 0
        return data
