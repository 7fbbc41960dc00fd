"""A segment of the journal on disk: torn ends are cut off, damage is named, nothing wrong is ever used."""

import errno
import os
import struct

import numpy as np
import pytest
import xxhash

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.storage import direct_file, record_layout
from numba_adam.server.storage.segment import Reader, Writer

SIZES = (3, 200, 9)
GRADIENTS = [np.random.default_rng(n).standard_normal(size, dtype=np.float32) for n, size in enumerate(SIZES)]
BLOCK = 4096


@pytest.fixture
def path(tmp_path):
    writer = Writer(tmp_path / "00000001.journal")
    writer.append(b"the first record")
    writer.sync()
    for number, gradient in enumerate(GRADIENTS):
        writer.append(b"event %d" % number, gradient)
        writer.sync()
    writer.close()
    return writer.path


def read(path):
    """Return the intact records, and where a torn one begins."""
    found = []
    with Reader(path) as reader:
        for record in reader.records():
            gradient = np.full(record.gradient_bytes // 4, np.nan, np.float32)
            if not reader.gradient(record, gradient):
                break
            found.append((record.event, gradient.tobytes(), record.end))
        return found, reader.torn_at


def test_records_are_read_as_they_were_written(path):
    found, torn_at = read(path)
    assert [event for event, _, _ in found] == [b"the first record", b"event 0", b"event 1", b"event 2"]
    assert [gradient for _, gradient, _ in found[1:]] == [gradient.tobytes() for gradient in GRADIENTS]
    assert torn_at is None


def test_a_segment_that_was_cut_short_anywhere_has_the_records_before(path):
    raw, (whole, _) = path.read_bytes(), read(path)
    ends = [8, *(end for _, _, end in whole)]
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        found, torn_at = read(path)
        assert found == [record for record in whole if record[2] <= size]
        assert torn_at == (None if size in ends else max([0, *(end for end in ends if end <= size)]))


def test_every_flipped_bit_is_found_or_changes_nothing(path):
    raw, whole = path.read_bytes(), read(path)
    harmless = 0
    for position in range(len(raw)):
        for bit in (0, 5):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert read(path) == whole
                harmless += 1
            except CorruptSnapshotError as error:
                assert f"{path.name}' is damaged at offset " in str(error)  # noqa: PT017
    assert harmless <= 2 * 7 * 4  # the bytes between records


@pytest.mark.parametrize("sector", [1, 2])
def test_zeros_are_torn_at_the_end_and_damage_before_what_is_known_to_be_on_disk(path, sector):
    raw, (whole, _) = path.read_bytes(), read(path)
    damaged = raw[: 512 * sector] + bytes(min(512, len(raw) - 512 * sector)) + raw[512 * (sector + 1) :]
    path.write_bytes(damaged)
    if sector == 1:  # within the second gradient, and the third record says that it was on disk
        with pytest.raises(CorruptSnapshotError, match=f"damaged at offset {whole[1][2]}"):
            read(path)
        path.write_bytes(damaged[: whole[2][2]])
    found, torn_at = read(path)
    assert found == whole[: sector + 1]
    assert torn_at == whole[sector][2]


def aligned(size):
    """Return random numbers that begin at a block."""
    raw = np.zeros(size * 4 + BLOCK, np.uint8)
    begin = -raw.ctypes.data % BLOCK
    found = raw[begin : begin + size * 4].view(np.float32)
    found[:] = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    return found


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A segment with large gradients after small ones, as a server writes them."""
    monkeypatch.setattr(record_layout, "LARGE_BYTES", 2 * BLOCK)
    writer = Writer(tmp_path / "00000002.journal")
    writer.append(b"the first record")
    writer.sync()
    gradients = [aligned(2 * BLOCK // 4), aligned(3), aligned(2500), aligned(3000)]
    for number, gradient in enumerate(gradients):
        write = writer.begin(b"event %d" % number, gradient)
        assert (write is None) == (number == 1)
        if write is None or number == 3:
            writer.append(b"event %d" % number, gradient)
        else:
            write()
        writer.sync()
    writer.close()
    return writer.path, gradients


def test_large_gradients_begin_and_end_at_blocks_and_are_read_as_they_were_written(large):
    path, gradients = large
    found, torn_at = read(path)
    assert [event for event, _, _ in found] == [b"the first record", *(b"event %d" % n for n in range(4))]
    assert [gradient for _, gradient, _ in found[1:]] == [gradient.tobytes() for gradient in gradients]
    assert torn_at is None
    assert [end % BLOCK == 0 for _, _, end in found] == [False, True, False, True, True]
    assert path.stat().st_size == found[-1][2]
    assert path.read_bytes().find(gradients[0].tobytes()) == BLOCK


def test_a_large_record_is_the_same_without_direct_writes(large, monkeypatch, tmp_path):
    path, gradients = large

    def refused(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwritev", refused)
    monkeypatch.setattr(direct_file, "_fallocate", lambda *_: errno.EOPNOTSUPP)
    writer = Writer(tmp_path / "00000003.journal")
    writer.append(b"the first record")
    writer.sync()
    for number, gradient in enumerate(gradients):
        assert writer.begin(b"event %d" % number, gradient) is None
        writer.append(b"event %d" % number, gradient)
        writer.sync()
    writer.close()
    assert writer.path.read_bytes() == path.read_bytes()


def test_a_large_record_that_was_cut_short_or_whose_sector_is_zero_is_torn(large):
    path, _ = large
    raw, (whole, _) = path.read_bytes(), read(path)
    begin = whole[-2][2]
    for place in range(begin, len(raw), 512):
        path.write_bytes(raw[:place])
        assert read(path) == (whole[:-1], None if place == begin else begin)
        path.write_bytes(raw[:place] + bytes(512) + raw[place + 512 :])
        is_unused = begin + 512 <= place < begin + BLOCK  # between the event and the gradient
        assert read(path) == ((whole, None) if is_unused else (whole[:-1], begin))


def test_every_flipped_byte_of_a_large_record_is_found_or_changes_nothing(large):
    path, gradients = large
    raw, whole = path.read_bytes(), read(path)
    begin = whole[0][-2][2]
    used = {*range(begin, begin + 56 + len(b"event 3")), *range(begin + BLOCK, begin + BLOCK + gradients[3].nbytes)}
    for position in range(begin, len(raw), 7):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 16]) + raw[position + 1 :])
        try:
            assert read(path) == whole
            assert position not in used
        except CorruptSnapshotError as error:
            assert f"damaged at offset {begin}" in str(error)  # noqa: PT017


def test_a_full_disk_is_noticed_before_a_large_record_is_begun(large, monkeypatch, tmp_path):
    _, gradients = large
    writer = Writer(tmp_path / "00000003.journal")
    with monkeypatch.context() as patch:
        patch.setattr(direct_file, "_fallocate", lambda *_: errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            writer.begin(b"event", gradients[0])
    assert writer.path.stat().st_size == writer.size == 8
    writer.append(b"event", gradients[0])
    writer.close()
    assert [event for event, _, _ in read(writer.path)[0]] == [b"event"]


def test_a_segment_of_the_format_before_is_read(tmp_path):
    path, raw, ends = tmp_path / "00000001.journal", b"NBADSEG1", []
    gradients = [np.arange(size, dtype=np.float32) for size in (0, 3, 100_000, 5)]
    for number, gradient in enumerate(gradients):
        event, content = b"event %d" % number, gradient.tobytes()
        checksums = xxhash.xxh3_64_intdigest(event), xxhash.xxh3_64_intdigest(content)
        fields = struct.pack("<8s5Q", b"NBADREC1", len(event), len(content), len(raw), *checksums)
        raw += fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields + struct.pack("<Q", len(raw))))
        raw += event + content
        raw += bytes(-len(raw) % 8)
        ends.append(len(raw))
    path.write_bytes(raw)
    expected = [(b"event %d" % n, gradient.tobytes(), ends[n]) for n, gradient in enumerate(gradients)]
    assert read(path) == (expected, None)
    path.write_bytes(raw[:-30])
    assert read(path) == (expected[:-1], ends[-2])
