"""Encodes and decodes transfer messages: the same bytes as the generated code, with fewer copies.

All transfers have the same parts under the same field numbers (header 1, chunk 2, trailer 3; an acknowledgement 4),
so the same code handles them all. Encoding copies a chunk's data once; decoding does not copy it. The decoder handles
the field order of our encoder and of common generators. The generated parser handles all other valid protobuf:
reordered, repeated or unknown fields, and overlong varints.

May import the generated messages and protobuf; never gRPC, NumPy or Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from numba_adam.ps.transfer import Chunk, Trailer
from numba_adam.ps.v1.parameter_service_pb2 import (
    CreateModelRequest,
    PullResponse,
    PushPullRequest,
    PushPullResponse,
    PushRequest,
)
from numba_adam.ps.v1.transfer_pb2 import TransferTrailer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DEFAULT_CHUNK_BYTES = 1 << 20
"""Payload bytes of one chunk. Large enough for a negligible cost per message, small enough to pipeline."""

_CHUNK_TAG = 0x12  # of a transfer message: field 2, length-delimited
_OFFSET_TAG = 0x08  # of a TensorChunk: field 1, varint
_DATA_TAG = 0x12  # of a TensorChunk: field 2, length-delimited
_LONGEST_VARINT = 9  # bytes, so 63 bits; the generated parser handles longer ones

_M = TypeVar("_M", CreateModelRequest, PushRequest, PushPullRequest, PullResponse, PushPullResponse)


def encode_chunk(offset: int, *data: ReadableBuffer) -> bytes:
    """Return an encoded transfer message that contains a chunk.

    Args:
        offset: position of the first byte within the payload, from 0 to 2**64 - 1.
        data: C-contiguous memory of any format, one or more pieces in order. Below 2 GiB in total (protobuf's
            limit).

    Returns:
        The bytes of a PushRequest, CreateModelRequest, PullResponse, ...: they are equal.

    Raises:
        ValueError: the offset is out of range.
        TypeError: the memory is not contiguous.
    """
    if not 0 <= offset < 1 << 64:
        raise ValueError(f"offset: expected a number at least 0 and below 2**64, got {offset}")
    size = sum(piece.nbytes if isinstance(piece, memoryview) else memoryview(piece).nbytes for piece in data)
    fields = b"\x08" + varint(offset) if offset else b""
    if size:
        fields += b"\x12" + varint(size)
    return b"".join((b"\x12", varint(len(fields) + size), fields, *data))


def encode_trailer(checksum: int) -> bytes:
    """Return an encoded transfer message that contains a trailer: the same bytes for all kinds of transfer."""
    return PushRequest(trailer=TransferTrailer(checksum=checksum)).SerializeToString()


def encode_message(message: Message | bytes) -> bytes:
    """Serialise a message for gRPC; return bytes (an encoded chunk) unchanged."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def varint(value: int) -> bytes:
    """Return the shortest varint of a non-negative number."""
    if value < 0x80:
        return bytes((value,))
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a varint's value and the position after it. The value is -1 if our encoder cannot produce the varint."""
    value = raw[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for index in range(1, _LONGEST_VARINT):
        byte = raw[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return (value if byte else -1), at + index + 1
    return -1, at


def read_chunk(raw: bytes) -> Chunk | None:
    """Return the chunk in a message with exactly our encoder's field order, else None."""
    try:
        if raw[0] != _CHUNK_TAG:
            return None
        size, at = read_varint(raw, 1)
        if size != len(raw) - at:
            return None
        offset = 0
        if raw[at] == _OFFSET_TAG:
            offset, at = read_varint(raw, at + 1)
        if offset < 0 or raw[at] != _DATA_TAG:
            return None
        size, at = read_varint(raw, at + 1)
    except IndexError:  # the message is too short
        return None
    return Chunk(offset, memoryview(raw)[at:]) if size == len(raw) - at else None


def _decoder(message_type: type[_M]) -> Callable[[bytes], _M | Chunk | Trailer]:
    """Return the decoder for one type of transfer message."""

    def decode(raw: bytes) -> _M | Chunk | Trailer:
        """Return the chunk or trailer in the message, or else the message.

        Raises:
            google.protobuf.message.DecodeError: the bytes are not a valid message.
        """
        chunk = read_chunk(raw)
        if chunk is not None:
            return chunk
        message = message_type.FromString(raw)
        part = message.WhichOneof("part")
        if part == "chunk":
            return Chunk(message.chunk.offset, memoryview(message.chunk.data))
        return Trailer(message.trailer.checksum) if part == "trailer" else message

    return decode


decode_create_model_request = _decoder(CreateModelRequest)
decode_push_request = _decoder(PushRequest)
decode_push_pull_request = _decoder(PushPullRequest)
decode_pull_response = _decoder(PullResponse)
decode_push_pull_response = _decoder(PushPullResponse)
