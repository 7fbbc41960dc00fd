"""Sends the parameters of a pull copy: header, chunks, trailer. Imports the framing, the watch and the runtime."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import grpc

from numba_adam.ps import convert, framing
from numba_adam.ps.checksum import new_checksum
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.transfer_pb2 import TransferTrailer
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.narrowing import payload_bytes, payload_pieces
from numba_adam.server.runtime.pull_copy import PullCopy
from numba_adam.server.transport.watch import Watch

_SENDING_BYTES = 1 << 22  # about how much all pulls together have in chunks that are being sent
_SMALLEST_CHUNK_BYTES = 1 << 16
_PullAnswer = TypeVar("_PullAnswer", pb.PullResponse, pb.PushPullResponse)


class PayloadForm(NamedTuple):
    """How a pull sends the parameters."""

    checksum_kind: int
    """A ChecksumKind of the protocol."""

    dtype: int
    """The element type that was asked for, by its number; 0: the model's."""

    narrow_dtype: str
    """Its name, if the parameters must be rounded to it; else empty."""

    def nbytes(self, model: Model) -> int:
        """Return the size of a model's payload."""
        return payload_bytes(model.spec.element_count, model.spec.numpy_dtype.itemsize, self.narrow_dtype)


class PullSender:
    """Sends pull copies.

    Args:
        watch: ends the calls of peers that stall.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._senders = 0
        self._lock = threading.Lock()

    def send(
        self, pull_copy: PullCopy, form: PayloadForm, response: type[_PullAnswer], context: grpc.ServicerContext
    ) -> Iterator[_PullAnswer | bytes]:
        """Send a pull copy. Concurrent pulls use smaller chunks, because each keeps several in memory."""
        with self._lock:
            self._senders += 1
            share = _SENDING_BYTES // self._senders
        try:
            chunk_bytes = min(framing.DEFAULT_CHUNK_BYTES, max(share, _SMALLEST_CHUNK_BYTES))
            yield from self._watch.send(_pulled(pull_copy, form, response, chunk_bytes), context)
        finally:
            with self._lock:
                self._senders -= 1


def _pulled(
    pull_copy: PullCopy, form: PayloadForm, response: type[_PullAnswer], chunk_bytes: int
) -> Iterator[_PullAnswer | bytes]:
    """Yield the messages of a pull copy: header, encoded chunks, trailer."""
    model, checksum, offset = pull_copy.model, new_checksum(form.checksum_kind), 0
    header = pb.PullHeader(
        state=convert.state_to_proto(pull_copy.state),
        total_bytes=form.nbytes(model),
        checksum_kind=form.checksum_kind,  # type: ignore[arg-type]  # enums are plain numbers at run time
        dtype=form.dtype,  # type: ignore[arg-type]
    )
    begin = time.perf_counter()
    yield response(header=header)
    for piece in payload_pieces(pull_copy.bytes.view(model.arena.dtype), form.narrow_dtype, chunk_bytes):
        checksum.update(piece)
        yield framing.encode_chunk(offset, piece)
        offset += len(piece)
        model.tally.note_sent(len(piece))
    model.tally.pull_seconds.add(time.perf_counter() - begin)  # before the last message: nobody reads on after it
    yield response(trailer=TransferTrailer(checksum=checksum.value()))
