"""Encodes and decodes a small push as one message: header, checksum and payload together.

The decoder handles the field order of our encoder and of common generators, without a copy of the payload. The
generated parser handles all other valid protobuf. May import the framing and the parts of transfers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import Message

from numba_adam.ps.framing import read_varint, varint
from numba_adam.ps.transfer import Chunk, Trailer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_WHOLE_TAG = 0x22  # of a PushRequest or PushPullRequest: field 4, length-delimited
_HEADER_TAG = 0x0A  # of a WholePush: field 1, as in a PushRequest
_CHECKSUM_TAG = 0x11  # field 2, fixed64
_PAYLOAD_TAG = 0x1A  # field 3, length-delimited
_CHECKSUM_BYTES = 8
_OWN_BYTES = 32  # more than tags, lengths and checksum take


class Whole(NamedTuple):
    """The parts of a whole push."""

    header: Any
    """The message with the header, as a stream begins with; encoded or decoded."""

    parts: tuple[Chunk | Trailer, ...]
    """The chunk, unless the payload is empty; and the trailer."""


def size_of_whole(header: bytes, payload_bytes: int) -> int:
    """Return about how many bytes a whole push takes, or a few more."""
    return len(header) + payload_bytes + _OWN_BYTES


def encode_whole(header: bytes, checksum: int, *payload: ReadableBuffer) -> bytes:
    """Return an encoded PushRequest or PushPullRequest that is a whole push.

    Args:
        header: the encoded request with the header, as a stream begins with.
        checksum: of the payload.
        payload: C-contiguous memory of any format, one or more pieces in order.
    """
    fields = [header]
    if checksum:
        fields += [b"\x11", checksum.to_bytes(_CHECKSUM_BYTES, "little")]
    size = sum(memoryview(piece).nbytes for piece in payload)
    if size:
        fields += [b"\x1a", varint(size)]
    return b"".join((b"\x22", varint(sum(map(len, fields)) + size), *fields, *payload))


def read_whole(raw: bytes) -> Whole | None:
    """Return a whole push with exactly our encoder's field order, its header encoded; else None."""
    try:
        if raw[0] != _WHOLE_TAG:
            return None
        size, begin = read_varint(raw, 1)
        if size != len(raw) - begin or raw[begin] != _HEADER_TAG:
            return None
        size, at = read_varint(raw, begin + 1)
        end = at + size
        if size < 0 or end > len(raw):
            return None
        header, at, checksum = raw[begin:end], end, 0
        if at < len(raw) and raw[at] == _CHECKSUM_TAG:
            at += 1 + _CHECKSUM_BYTES
            checksum = int.from_bytes(raw[at - _CHECKSUM_BYTES : at], "little")
        if at == len(raw):
            return Whole(header, (Trailer(checksum),))
        if raw[at] != _PAYLOAD_TAG:
            return None
        size, at = read_varint(raw, at + 1)
    except IndexError:  # the message is too short
        return None
    if not size or size != len(raw) - at:
        return None
    return Whole(header, (Chunk(0, memoryview(raw)[at:]), Trailer(checksum)))


def whole_of(request: Message) -> Whole | None:
    """Return the whole push in a decoded request; None if it has another part."""
    if request.WhichOneof("part") != "whole":
        return None
    whole: Any = getattr(request, "whole")  # noqa: B009 - a field of these requests, not of every Message
    chunks = (Chunk(0, memoryview(whole.payload)),) if whole.payload else ()
    header = type(request)(header=whole.header)
    return Whole(header, (*chunks, Trailer(whole.checksum)))
