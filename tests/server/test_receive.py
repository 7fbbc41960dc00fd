"""Receiving a transfer by chunks: sizes, order, checksum, finite values, and error messages."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.errors import CorruptTransferError, InvalidRequestError, NonFiniteError
from numba_adam.ps.checksum import CRC32C, XXH3_64, new_checksum
from numba_adam.ps.transfer import Chunk, Trailer, receive
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.receive import Receiver

TENSORS = (Tensor("first", (2, 3)), Tensor("empty", (0,)), Tensor("second", (4,)))
VALUES = np.arange(10, dtype=np.float32)


def receiver(target, *, kind=XXH3_64, dtype="float32"):
    return Receiver(target, np.dtype(dtype), TENSORS, kind, "gradient")


def chunk(offset, data):
    return Chunk(offset, memoryview(data))


def cut(payload, sizes):
    """Return the payload in chunks of the given sizes, and the rest."""
    ends = np.minimum(np.cumsum([*sizes, len(payload)]), len(payload)).tolist()
    pairs = zip([0, *ends], ends, strict=False)
    return [chunk(start, payload[start:end]) for start, end in pairs if start < end]


@given(sizes=st.lists(st.integers(1, 17), max_size=12))
def test_chunks_may_divide_the_payload_at_any_byte(sizes):
    target = np.zeros(40, np.uint8)
    taker = receiver(target)
    for part in cut(VALUES.tobytes(), sizes):
        taker.take(part)
    taker.finish(xxhash.xxh3_64_intdigest(VALUES.tobytes()))
    assert target.tobytes() == VALUES.tobytes()


@pytest.mark.parametrize("kind", [XXH3_64, CRC32C])
def test_a_flipped_bit_is_a_corrupt_transfer(kind):
    checksum = new_checksum(kind)
    checksum.update(VALUES)
    payload = bytearray(VALUES.tobytes())
    payload[17] ^= 8
    taker = receiver(np.zeros(40, np.uint8), kind=kind)
    taker.take(chunk(0, bytes(payload)))
    with pytest.raises(CorruptTransferError, match=r"checksum is 0x[0-9a-f]{16}, its trailer says 0x"):
        taker.finish(checksum.value())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("element", range(10))
def test_every_bad_element_is_named_for_any_chunks(value, dtype, element):
    values = np.arange(10, dtype=dtype)
    values[element] = value
    name, place = ("first", element) if element < 6 else ("second", element - 6)
    for chunk_bytes in (3, 8, 24, 80):
        taker = receiver(np.zeros(values.nbytes, np.uint8), dtype=dtype)
        for part in cut(values.tobytes(), [chunk_bytes] * 30):
            taker.take(part)
        with pytest.raises(NonFiniteError, match=f"gradient '{name}' holds {value} at element {place}\\b"):
            taker.finish(xxhash.xxh3_64_intdigest(values.tobytes()))


def test_an_element_of_a_multidimensional_array_has_its_index_in_the_message():
    values = VALUES.copy()
    values[4] = np.nan
    taker = receiver(np.zeros(40, np.uint8))
    taker.take(chunk(0, values.tobytes()))
    with pytest.raises(NonFiniteError, match=r"element 4 \(index \[1, 1\]\)"):
        taker.finish(xxhash.xxh3_64_intdigest(values.tobytes()))


def test_a_nan_from_a_flipped_bit_is_a_corrupt_transfer():
    damaged = VALUES.copy()
    damaged[2] = np.nan
    taker = receiver(np.zeros(40, np.uint8))
    taker.take(chunk(0, damaged.tobytes()))
    with pytest.raises(CorruptTransferError):
        taker.finish(xxhash.xxh3_64_intdigest(VALUES.tobytes()))


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        (0, 8, "offset 0 overlaps the one before: the next one must be at offset 8"),
        (7, 8, "offset 7 overlaps"),
        (9, 8, "offset 9 leaves a gap"),
        (2**64 - 1, 8, "leaves a gap"),
        (8, 33, "33 bytes at offset 8 goes beyond the 40 bytes declared"),
        (8, 0, "offset 8 is empty"),
    ],
)
def test_chunks_out_of_order_are_refused_before_a_byte_is_copied(offset, size, words):
    target = np.zeros(40, np.uint8)
    taker = receiver(target)
    taker.take(chunk(0, b"\1" * 8))
    with pytest.raises(InvalidRequestError, match=words):
        taker.take(chunk(offset, b"\2" * size))
    assert target.tolist() == [1] * 8 + [0] * 32


def test_a_transfer_that_ends_early_is_refused():
    taker = receiver(np.zeros(40, np.uint8))
    taker.take(chunk(0, b"\0" * 39))
    with pytest.raises(InvalidRequestError, match="ended after 39 bytes: its header declared 40"):
        taker.finish(0)


@pytest.mark.parametrize("kind", [0, 3, -1])
def test_an_unknown_kind_of_checksum_is_refused(kind):
    with pytest.raises(InvalidRequestError, match=f"checksum_kind={kind}"):
        receiver(np.zeros(40, np.uint8), kind=kind)


def test_an_empty_payload_needs_no_checksum():
    taker = Receiver(np.zeros(0, np.uint8), np.dtype("float32"), (), 0, "gradient")
    receive([Trailer(0)], taker)
    with pytest.raises(InvalidRequestError, match="goes beyond the 0 bytes declared"):
        taker.take(chunk(0, b"x"))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "ended before its trailer"),
        ([chunk(0, VALUES.tobytes())], "ended before its trailer"),
        ([pb.PushRequest(header=pb.PushHeader())], "neither a chunk nor a trailer"),
        ([chunk(0, VALUES.tobytes()), pb.PushRequest()], "neither a chunk nor a trailer"),
    ],
)
def test_parts_in_the_wrong_order_are_refused(parts, words):
    with pytest.raises(InvalidRequestError, match=words):
        receive(parts, receiver(np.zeros(40, np.uint8)))


@pytest.mark.parametrize(
    ("dtype", "limit", "largest"), [("float32", 2.0**64, 1.84e19), ("float64", 2.0**512, 1.34e154)]
)
@pytest.mark.parametrize("element", range(10))
def test_a_value_at_or_above_the_limit_is_named(dtype, limit, largest, element):
    for value, is_refused in ((limit, True), (-limit, True), (largest, False), (-largest, False)):
        values = np.arange(10, dtype=dtype)
        values[element] = value
        payload, target = values.tobytes(), np.zeros(values.nbytes, np.uint8)
        taker = Receiver(target, np.dtype(dtype), TENSORS, XXH3_64, "gradient", limit)
        for part in cut(payload, [7, 9, 30]):
            taker.take(part)
        if is_refused:
            name, place = ("first", element) if element < 6 else ("second", element - 6)
            with pytest.raises(NonFiniteError, match=f"'{name}' holds .* at element {place}.*overflows {dtype}"):
                taker.finish(xxhash.xxh3_64_intdigest(payload))
        else:
            taker.finish(xxhash.xxh3_64_intdigest(payload))
            assert target.tobytes() == payload


def test_without_a_limit_every_finite_value_is_accepted():
    values = np.array([3e38, -3e38, *range(8)], np.float32)
    target = np.zeros(40, np.uint8)
    taker = receiver(target)
    taker.take(chunk(0, values.tobytes()))
    taker.finish(xxhash.xxh3_64_intdigest(values.tobytes()))
    assert target.tobytes() == values.tobytes()
