"""The framing compared with generated code: equal encoding, and equal decoding of every byte string."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.ps import framing
from numba_adam.ps.framing import encode_chunk, encode_message
from numba_adam.ps.transfer import Chunk, Trailer
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.transfer_pb2 import TensorChunk, TransferTrailer

DECODERS = [
    (framing.decode_create_model_request, pb.CreateModelRequest),
    (framing.decode_push_request, pb.PushRequest),
    (framing.decode_push_pull_request, pb.PushPullRequest),
    (framing.decode_pull_response, pb.PullResponse),
    (framing.decode_push_pull_response, pb.PushPullResponse),
]
IDS = [message_type.__name__ for _, message_type in DECODERS]
EDGE_OFFSETS = [0, 1, 127, 128, 16383, 16384, 2**32 - 1, 2**32, 2**56, 2**63 - 1, 2**63, 2**64 - 1]
OFFSETS = st.one_of(st.sampled_from(EDGE_OFFSETS), st.integers(0, 2**64 - 1))


def oracle(message_type: type[Message], raw: bytes) -> object:
    """Return the generated parser's result in a comparable form, or "refused"."""
    try:
        message = message_type.FromString(raw)
    except DecodeError:
        return "refused"
    if message.WhichOneof("part") == "chunk":
        return ("chunk", message.chunk.offset, message.chunk.data)
    if message.WhichOneof("part") == "trailer":
        return Trailer(message.trailer.checksum)
    return message


def ours(decode: object, raw: bytes) -> object:
    try:
        decoded = decode(raw)
    except DecodeError:
        return "refused"
    return ("chunk", decoded.offset, bytes(decoded.data)) if isinstance(decoded, Chunk) else decoded


@pytest.mark.parametrize("message_type", [message_type for _, message_type in DECODERS], ids=IDS)
@given(offset=OFFSETS, data=st.binary(max_size=300))
def test_an_encoded_chunk_equals_that_of_generated_code(message_type, offset, data):
    assert encode_chunk(offset, data) == message_type(chunk=TensorChunk(offset=offset, data=data)).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16383, 16384, 1 << 20, (1 << 21) + 5])
@pytest.mark.parametrize("offset", EDGE_OFFSETS)
def test_lengths_and_offsets_around_every_varint_boundary(size, offset):
    data = np.random.default_rng(size).bytes(size)
    raw = encode_chunk(offset, data)
    assert raw == pb.PushRequest(chunk=TensorChunk(offset=offset, data=data)).SerializeToString()
    assert framing.decode_push_request(raw) == Chunk(offset, memoryview(data))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_any_contiguous_memory_can_be_a_chunk(dtype, shape):
    array = np.ones(shape, dtype)
    expected = pb.PushRequest(chunk=TensorChunk(offset=8, data=array.tobytes())).SerializeToString()
    assert encode_chunk(8, array) == expected
    assert encode_chunk(8, memoryview(array)) == expected


@given(pieces=st.lists(st.binary(max_size=50), max_size=5))
def test_pieces_follow_each_other_in_one_chunk(pieces):
    assert encode_chunk(3, *pieces) == encode_chunk(3, b"".join(pieces))


@pytest.mark.parametrize("message_type", [message_type for _, message_type in DECODERS], ids=IDS)
@given(checksum=st.integers(0, 2**64 - 1))
def test_a_trailer_is_the_same_in_every_transfer(message_type, checksum):
    expected = message_type(trailer=TransferTrailer(checksum=checksum)).SerializeToString()
    assert framing.encode_trailer(checksum) == expected


def test_memory_with_holes_is_refused():
    with pytest.raises(TypeError, match="bytes-like"):
        encode_chunk(0, np.ones((4, 4), np.float32)[:, ::2])


@pytest.mark.parametrize("offset", [-1, 2**64])
def test_an_offset_out_of_range_is_refused(offset):
    with pytest.raises(ValueError, match="at least 0 and below"):
        encode_chunk(offset, b"x")


def test_a_chunk_is_read_without_a_copy():
    raw = encode_chunk(5, b"payload")
    chunk = framing.decode_push_request(raw)
    assert chunk.data.obj is raw


# --- every byte string means what the generated parser says -----------------------------------------------------

VARINTS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))


def varint(value: int, padding: int) -> bytes:
    """Return a varint with `padding` extra bytes (valid up to ten bytes)."""
    groups = []
    while True:
        groups.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    groups += [0] * padding
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


@st.composite
def varint_bytes(draw: st.DrawFn, values: st.SearchStrategy[int] = VARINTS) -> bytes:
    return varint(draw(values), draw(st.sampled_from([0, 0, 0, 0, 1, 2, 5])))


@st.composite
def fields(draw: st.DrawFn, inner: st.SearchStrategy[bytes]) -> bytes:
    """One field with any number, wire type and encoding, mostly similar to the protocol's."""
    number = draw(st.sampled_from([1, 2, 3, 4, 5, 2**20]))
    wire_type = draw(st.sampled_from([0, 1, 2, 2, 2, 5]))
    tag = varint(number << 3 | wire_type, draw(st.sampled_from([0, 0, 0, 1])))
    if wire_type == 0:
        return tag + draw(varint_bytes())
    if wire_type == 1:
        return tag + draw(st.binary(min_size=8, max_size=8))
    if wire_type == 5:
        return tag + draw(st.binary(min_size=4, max_size=4))
    body = draw(inner)
    return tag + varint(len(body), draw(st.sampled_from([0, 0, 1]))) + body


def joined(parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(parts, max_size=3).map(b"".join)


CHUNK_FIELDS = st.one_of(
    varint_bytes().map(lambda value: b"\x08" + value),
    st.binary(max_size=20).map(lambda data: b"\x12" + varint(len(data), 0) + data),
    fields(st.binary(max_size=8)),
)
NEAR_CHUNKS = joined(CHUNK_FIELDS).map(lambda body: b"\x12" + varint(len(body), 0) + body)
TRAILERS = st.integers(0, 2**64 - 1).map(
    lambda checksum: pb.PushRequest(trailer=TransferTrailer(checksum=checksum)).SerializeToString()
)
MESSAGES = joined(st.one_of(NEAR_CHUNKS, TRAILERS, fields(joined(CHUNK_FIELDS))))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with a byte changed, removed or inserted."""
    raw = bytearray(draw(MESSAGES))
    at = draw(st.integers(0, len(raw)))
    raw[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(raw)


@pytest.mark.parametrize(("decode", "message_type"), DECODERS, ids=IDS)
@given(raw=st.one_of(MESSAGES, damaged(), st.binary(max_size=40)))
def test_every_byte_string_decodes_as_in_the_generated_parser(decode, message_type, raw):
    assert ours(decode, raw) == oracle(message_type, raw)


@pytest.mark.parametrize(("decode", "message_type"), DECODERS, ids=IDS)
@given(data=st.data())
def test_every_truncated_chunk_decodes_as_in_the_generated_parser(decode, message_type, data):
    raw = encode_chunk(data.draw(OFFSETS), data.draw(st.binary(max_size=200)))
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    assert ours(decode, cut) == oracle(message_type, cut)


LEGAL_BUT_ODD = {
    "data before offset": b"\x12\x05\x12\x01x\x08\x07",
    "offset twice": b"\x12\x07\x08\x01\x08\x02\x12\x01x",
    "data twice": b"\x12\x06\x12\x01x\x12\x01y",
    "chunk twice, merged": b"\x12\x03\x12\x01x\x12\x02\x08\x09",
    "a trailer after the chunk": b"\x12\x03\x12\x01x\x1a\x09\x09" + bytes(8),
    "a chunk after a trailer": b"\x1a\x09\x09" + bytes(8) + b"\x12\x03\x12\x01x",
    "unknown field inside": b"\x12\x05\x12\x01x\x78\x01",
    "unknown field outside": b"\x12\x03\x12\x01x\x78\x01",
    "overlong length": b"\x12\x83\x00\x12\x01x",
    "overlong offset": b"\x12\x06\x08\x81\x00\x12\x01x",
    "overlong tag": b"\x92\x00\x03\x12\x01x",
    "explicit zero offset": b"\x12\x05\x08\x00\x12\x01x",
    "ten-byte offset": b"\x12\x0e\x08" + b"\xff" * 9 + b"\x01\x12\x01x",
    "offset beyond 64 bits": b"\x12\x0e\x08" + b"\xff" * 9 + b"\x7f\x12\x01x",
    "no data": b"\x12\x02\x08\x05",
    "empty chunk": b"\x12\x00",
    "empty data, written out": b"\x12\x02\x12\x00",
    "empty message": b"",
    "chunk with the wrong wire type": b"\x10\x01",
}


@pytest.mark.parametrize("raw", LEGAL_BUT_ODD.values(), ids=LEGAL_BUT_ODD)
@pytest.mark.parametrize(("decode", "message_type"), DECODERS, ids=IDS)
def test_unusual_encodings_decode_as_in_the_generated_parser(decode, message_type, raw):
    assert oracle(message_type, raw) != "refused", "the test means to be legal protobuf"
    assert ours(decode, raw) == oracle(message_type, raw)


def test_messages_are_serialized_and_bytes_stay_unchanged():
    message = pb.PushRequest(trailer=TransferTrailer(checksum=7))
    assert encode_message(message) == message.SerializeToString()
    raw = encode_chunk(0, b"abc")
    assert encode_message(raw) is raw
