"""Payloads are divided into chunks and assembled again, for any arrays and chunk size."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.client.pieces import cut, views
from numba_adam.client.progress import silent
from numba_adam.client.transfer import Download, Upload
from numba_adam.errors import CorruptTransferError
from numba_adam.ps.checksum import CRC32C, XXH3_64, new_checksum
from numba_adam.ps.transfer import Chunk
from numba_adam.ps.v1.parameter_service_pb2 import PushRequest

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=6)


def arrays_of(shapes):
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = np.arange(sum(sizes), dtype=np.float32)
    ends = np.cumsum(sizes)
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]) if sizes else [], shapes, strict=True)]


@given(shapes=SHAPES, chunk_bytes=st.integers(1, 50), kind=st.sampled_from([XXH3_64, CRC32C]))
def test_the_payload_is_the_arrays_bytes_in_order(shapes, chunk_bytes, kind):
    arrays = arrays_of(shapes)
    payload = b"".join(array.tobytes() for array in arrays)
    header, *rest = Upload(b"header", arrays, kind, silent, chunk_bytes).messages()
    *chunks, trailer = map(PushRequest.FromString, rest)
    assert header == b"header"
    assert [part.WhichOneof("part") for part in chunks] == ["chunk"] * len(chunks)
    assert b"".join(part.chunk.data for part in chunks) == payload
    assert [part.chunk.offset for part in chunks] == list(range(0, len(payload), chunk_bytes))
    expected = new_checksum(kind)
    expected.update(payload)
    assert trailer.trailer.checksum == expected.value()


@given(shapes=SHAPES, cuts=st.lists(st.integers(1, 30), max_size=20))
def test_a_payload_in_any_chunks_is_received(shapes, cuts):
    arrays = arrays_of(shapes)
    payload = b"".join(array.tobytes() for array in arrays)
    places = [np.full_like(array, -1) for array in arrays]
    download = Download(places, len(payload), XXH3_64, silent)
    start = 0
    for size in [*cuts, len(payload)]:
        if start < len(payload):
            data = memoryview(payload)[start : start + size]
            download.take(Chunk(start, data))
            start += data.nbytes
    download.finish(xxhash.xxh3_64_intdigest(payload))
    for place, array in zip(places, arrays, strict=True):
        np.testing.assert_array_equal(place, array, strict=True)


def test_dividing_a_payload_into_chunks_copies_nothing():
    array = np.arange(100, dtype=np.uint8)
    pieces = [part for run in cut([array.data], 7) for part in views(run, memoryview(b""))]
    assert all(np.shares_memory(np.asarray(part), array) for part in pieces)


DAMAGE = {
    "gap": [Chunk(0, memoryview(b"1234")), Chunk(5, memoryview(b"678"))],
    "overlap": [Chunk(0, memoryview(b"1234")), Chunk(3, memoryview(b"45678"))],
    "twice": [Chunk(0, memoryview(b"1234")), Chunk(0, memoryview(b"1234"))],
    "too much": [Chunk(0, memoryview(b"123456789"))],
    "beyond 64 bits": [Chunk(2**64 - 1, memoryview(b"1"))],
}


@pytest.mark.parametrize("chunks", DAMAGE.values(), ids=DAMAGE)
def test_chunks_out_of_order_are_refused(chunks):
    download = Download([np.zeros(2, np.float32)], 8, XXH3_64, silent)
    *good, bad = chunks
    for chunk in good:
        download.take(chunk)
    with pytest.raises(CorruptTransferError, match=r"overlaps the one before|leaves a gap|goes beyond the 8 bytes"):
        download.take(bad)


def test_missing_and_wrong_bytes_are_detected_at_the_end():
    download = Download([np.zeros(2, np.float32)], 8, XXH3_64, silent)
    download.take(Chunk(0, memoryview(b"1234")))
    with pytest.raises(CorruptTransferError, match="ended after 4 bytes: its header declared 8"):
        download.finish(0)
    download.take(Chunk(4, memoryview(b"5678")))
    with pytest.raises(CorruptTransferError, match=r"checksum is 0x[0-9a-f]{16}, its trailer says 0x0"):
        download.finish(0)
    download.finish(xxhash.xxh3_64_intdigest(b"12345678"))


def test_progress_is_reported_after_each_chunk():
    told: list[tuple[int, int]] = []
    list(Upload(b"", [np.zeros(25, np.uint8)], XXH3_64, lambda done, total: told.append((done, total)), 10).messages())
    assert told == [(10, 25), (20, 25), (25, 25)]
