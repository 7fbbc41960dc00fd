"""A transfer taken chunk by chunk into memory, and checked on the way while each chunk is still in cache.

Sizes and order are checked before a byte is copied. Whether the values can be taken is said only once the checksum
holds: a bit that flipped on the way must not look like the sender's NaN. Imports NumPy, the finite check, the
checksums and the error tree.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from numba_adam.cpu.kernels.finite import first_beyond
from numba_adam.errors import CorruptTransferError, InvalidRequestError, NonFiniteError
from numba_adam.ps.checksum import SUPPORTED, new_checksum
from numba_adam.ps.framing import Chunk
from numba_adam.server.model.tensors import Tensor

Parts = Iterable[Chunk | Message]
"""What a stream still holds behind its header."""


class Reader:
    """Takes one transfer and keeps its checksum alone: what is left to learn of a payload that came before.

    Args:
        total_bytes: the declared size.
        checksum_kind: a ChecksumKind.

    Raises:
        InvalidRequestError: a kind of checksum that this server does not know.
    """

    def __init__(self, total_bytes: int, checksum_kind: int) -> None:
        if checksum_kind not in SUPPORTED and (checksum_kind or total_bytes):
            raise InvalidRequestError(f"checksum_kind={checksum_kind}: it must be one of {SUPPORTED}")
        self.checksum = 0
        """Of the whole payload, once `finish` has been called; 0 where an empty one has none."""

        self._total_bytes = total_bytes
        self._running = new_checksum(checksum_kind) if checksum_kind else None  # nothing to check in an empty payload
        self._received_bytes = 0

    def take(self, chunk: Chunk) -> None:
        """Check a chunk.

        Raises:
            InvalidRequestError: it does not follow the one before, is empty, or goes beyond the declared size.
        """
        self._check_place(chunk.offset, chunk.data.nbytes)
        data = self._keep(chunk.data)
        if self._running is not None:
            self._running.update(data)
        self._received_bytes += data.nbytes

    def finish(self, checksum: int) -> None:
        """Check the whole, once the trailer has come.

        Raises:
            InvalidRequestError: bytes are missing.
            CorruptTransferError: the checksum differs.
        """
        if self._received_bytes != self._total_bytes:
            raise InvalidRequestError(
                f"the transfer ended after {self._received_bytes} bytes: its header declared {self._total_bytes}"
            )
        if self._running is None:
            return
        self.checksum = self._running.value()
        if self.checksum != checksum:
            raise CorruptTransferError(
                f"the payload's checksum is {self.checksum:#018x}, its trailer says {checksum:#018x}: bytes changed on "
                "the way; send it again"
            )

    def _keep(self, data: memoryview) -> memoryview:
        """Return the bytes to take the checksum of, put where they are to stay."""
        return data

    def _check_place(self, offset: int, size: int) -> None:
        if offset != self._received_bytes:
            kind = "overlaps the one before" if offset < self._received_bytes else "leaves a gap"
            raise InvalidRequestError(
                f"a chunk at offset {offset} {kind}: the next one must be at offset {self._received_bytes}"
            )
        if not size:
            raise InvalidRequestError(f"the chunk at offset {offset} is empty: a chunk has at least one byte")
        if offset + size > self._total_bytes:
            raise InvalidRequestError(
                f"a chunk of {size} bytes at offset {offset} goes beyond the {self._total_bytes} bytes declared"
            )


class Receiver(Reader):
    """Takes one transfer into memory.

    Args:
        target: one-dimensional bytes to fill, of the declared size.
        dtype: element type of the payload.
        tensors: the arrays in the payload, in order; they name the place of a bad value.
        checksum_kind: a ChecksumKind.
        what: "gradient" or "initial value", for messages.
        limit: the magnitude from which on a value is refused; infinity lets every finite one pass.

    Raises:
        InvalidRequestError: a kind of checksum that this server does not know.
    """

    def __init__(
        self,
        target: npt.NDArray[np.uint8],
        dtype: np.dtype[Any],
        tensors: Sequence[Tensor],
        checksum_kind: int,
        what: str,
        limit: float = math.inf,
    ) -> None:
        super().__init__(target.nbytes, checksum_kind)
        self._target = target
        self._elements = target.view(dtype)
        self._tensors = tensors
        self._what = what
        self._limit = dtype.type(limit)
        self._checked_elements = 0
        self._bad_element = -1

    def take(self, chunk: Chunk) -> None:
        """Copy a chunk to its place and check it; raises as Reader's does."""
        super().take(chunk)
        self._check_finite()

    def finish(self, checksum: int) -> None:
        """Check the whole, once the trailer has come; raises as Reader's does, and NonFiniteError after that."""
        super().finish(checksum)
        if self._bad_element >= 0:
            raise NonFiniteError(self._describe_bad_element())

    def _keep(self, data: memoryview) -> memoryview:
        piece = self._target[self._received_bytes : self._received_bytes + data.nbytes]
        piece[:] = np.frombuffer(data, np.uint8)
        return piece.data

    def _check_finite(self) -> None:
        """Check the elements that are complete now; a chunk may end within one."""
        complete = self._received_bytes // self._elements.itemsize
        if self._bad_element < 0 and complete > self._checked_elements:
            found = first_beyond(self._elements[self._checked_elements : complete], self._limit)
            if found >= 0:
                self._bad_element = self._checked_elements + found
        self._checked_elements = complete

    def _describe_bad_element(self) -> str:
        ends = list(accumulate(tensor.size for tensor in self._tensors))
        index = bisect_right(ends, self._bad_element)
        tensor = self._tensors[index]
        place = self._bad_element - (ends[index] - tensor.size)
        where = tuple(int(position) for position in np.unravel_index(place, tensor.shape)) if tensor.shape else ()
        value = self._elements[self._bad_element]
        needed = "every value must be finite"
        if np.isfinite(value):
            needed = (
                f"its square is beyond {self._elements.dtype.name}, in which the second moment would be infinite for "
                f"ever; every magnitude must be below {self._limit:.2g}: look at the loss, or clip the gradients"
            )
        return (
            f"{self._what} {tensor.name!r} holds {value} at element {place}"
            f"{f' (index {list(where)})' if len(where) > 1 else ''}: {needed}"
        )


def receive(parts: Parts, receiver: Reader) -> None:
    """Take the chunks and the trailer that follow a header.

    Args:
        parts: what the stream still holds.
        receiver: takes them.

    Raises:
        InvalidRequestError: the parts come in another order, or the stream ends before its trailer.
        CorruptTransferError, NonFiniteError: see `finish`.
    """
    for part in parts:
        if isinstance(part, Chunk):
            receiver.take(part)
        elif part.WhichOneof("part") == "trailer":
            receiver.finish(part.trailer.checksum)  # type: ignore[attr-defined]  # every transfer message has one
            return
        else:
            raise InvalidRequestError("a transfer is a header, chunks, a trailer: this message is none of the last two")
    raise InvalidRequestError("the stream ended before its trailer: send it again, whole")
