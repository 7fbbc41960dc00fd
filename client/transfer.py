"""Payloads as streams of chunks: uploads with a checksum, and validated downloads into arrays.

May import NumPy and `numba_adam.ps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from numba_adam.client.progress import Progress
from numba_adam.errors import CorruptTransferError
from numba_adam.ps.checksum import new_checksum
from numba_adam.ps.framing import encode_chunk, encode_trailer
from numba_adam.ps.transfer import Chunk, Reader
from numba_adam.ps.whole import encode_whole, size_of_whole

CHUNK_BYTES = (1 << 21) - (1 << 12)
"""Payload bytes of a chunk that is sent. Each message costs both ends several switches of threads; every release of the
server takes messages of 2 MiB."""

_NOTHING = memoryview(bytearray())


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return a C-contiguous array's memory as bytes."""
    return array.data.cast("B") if array.size else _NOTHING  # memoryview cannot cast an empty array


class Made(Protocol):
    """Bytes that are made when they are read."""

    @property
    def nbytes(self) -> int:
        """The number of bytes."""

    def __getitem__(self, part: slice, /) -> memoryview:
        """Return some of the bytes, in new memory."""

    def write(self, start: int, target: memoryview) -> None:
        """Write the bytes from `start` on into a target, which they fill."""


Piece = memoryview | Made


def cut(pieces: Iterable[Piece], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """Cut the concatenated pieces into runs of `chunk_bytes` (the last one may be shorter), without a copy.

    A run is valid until the next one: bytes that are made when they are read lie in one memory for all runs. With new
    memory for each run, most of the time would go into the system's clearing of its pages.
    """
    run: list[memoryview] = []
    room = chunk_bytes
    made = _NOTHING
    for piece in pieces:
        start = 0
        while start < piece.nbytes:
            if isinstance(piece, memoryview):
                part = piece[start : start + room]
            else:
                made = made or memoryview(bytearray(chunk_bytes))
                part = made[chunk_bytes - room :][: piece.nbytes - start]
                piece.write(start, part)
            run.append(part)
            start += part.nbytes
            room -= part.nbytes
            if not room:
                yield run
                run, room = [], chunk_bytes
    if run:
        yield run


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
        self._pieces: list[Piece] = [each if not isinstance(each, np.ndarray) else bytes_of(each) for each in arrays]

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
        checksum, payload = new_checksum(self._kind), [piece[:] for piece in self._pieces]
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
        offset = 0
        for run in cut(self._pieces, self._chunk_bytes):
            size = sum(part.nbytes for part in run)
            raw = encode_chunk(offset, *run)
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
