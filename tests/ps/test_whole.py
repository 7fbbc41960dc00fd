"""A push in one message, compared with generated code: equal encoding, and equal decoding of every byte string."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.ps.transfer import Chunk, Trailer
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.whole import encode_whole, read_whole, size_of_whole, whole_of

REQUESTS = [pb.PushRequest, pb.PushPullRequest]
CHECKSUMS = st.one_of(st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 2**64 - 1))


def header_of(worker_id: str, total_bytes: int = 0) -> pb.PushHeader:
    return pb.PushHeader(model="m", worker_id=worker_id, sequence=3, total_bytes=total_bytes)


def plain(whole: object) -> object:
    """Return a decoded push in a comparable form."""
    if whole is None:
        return None
    header = whole.header if isinstance(whole.header, bytes) else whole.header.SerializeToString()
    return header, [bytes(part.data) if isinstance(part, Chunk) else part for part in whole.parts]


@pytest.mark.parametrize("request_type", REQUESTS)
@given(worker_id=st.text(max_size=200), checksum=CHECKSUMS, payload=st.binary(max_size=300))
def test_a_push_in_one_message_equals_that_of_generated_code(request_type, worker_id, checksum, payload):
    header = request_type(header=header_of(worker_id)).SerializeToString()
    whole = pb.WholePush(header=header_of(worker_id), checksum=checksum, payload=payload)
    encoded = encode_whole(header, checksum, payload[:100], payload[100:])
    assert encoded == request_type(whole=whole).SerializeToString()
    assert len(encoded) <= size_of_whole(header, len(payload))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 70_000])
def test_a_push_in_one_message_is_read_without_a_copy(size):
    payload = bytes(range(256)) * (size // 256 + 1)
    header = pb.PushRequest(header=header_of("w", size)).SerializeToString()
    raw = encode_whole(header, 7, payload[:size])
    whole = read_whole(raw)
    assert plain(whole) == (header, [*([payload[:size]] if size else []), Trailer(7)])
    assert all(part.data.obj is raw for part in whole.parts if isinstance(part, Chunk))


@given(st.lists(st.sampled_from(["header", "checksum", "payload", "unknown", "again"]), max_size=6), st.data())
def test_fields_in_any_order_give_what_generated_code_reads(names, data):
    pieces = {
        "header": pb.PushRequest(header=header_of("worker")).SerializeToString(),
        "checksum": b"\x11" + (5).to_bytes(8, "little"),
        "payload": b"\x1a\x03abc",
        "unknown": b"\x7a\x01x",
        "again": b"\x0a\x02\x28\x09",
    }
    inner = b"".join(pieces[name] for name in names)
    raw = b"\x22" + bytes([len(inner)]) + inner
    cut = raw[: data.draw(st.sampled_from([len(raw), max(0, len(raw) - 1)]))]
    assert_read_as_generated_code_does(cut)


@given(st.binary(max_size=40).map(lambda raw: b"\x22" + raw))
def test_bytes_at_random_give_what_generated_code_reads(raw):
    assert_read_as_generated_code_does(raw)


def assert_read_as_generated_code_does(raw: bytes) -> None:
    try:
        message = pb.PushRequest.FromString(raw)
    except DecodeError:
        message = None
    found = read_whole(raw)
    if found is None:
        return  # the generated parser reads it
    header = pb.PushRequest.FromString(found.header) if is_message(found.header) else None
    if message is None:
        assert header is None  # the header is refused when it is decoded
        return
    assert message.WhichOneof("part") == "whole"
    assert plain(found._replace(header=header)) == plain(whole_of(message))


def is_message(raw: bytes) -> bool:
    try:
        pb.PushRequest.FromString(raw)
    except DecodeError:
        return False
    return True


def test_another_part_is_no_whole_push():
    assert whole_of(pb.PushRequest(header=header_of("w"))) is None
    assert read_whole(pb.PushRequest(header=header_of("w")).SerializeToString()) is None
    assert read_whole(b"") is None
