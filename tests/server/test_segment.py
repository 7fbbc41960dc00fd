"""A segment of the journal on disk: torn ends are cut off, damage is named, nothing wrong is ever used."""

import numpy as np
import pytest

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.storage.segment import Reader, Writer

SIZES = (3, 200, 9)
GRADIENTS = [np.random.default_rng(n).standard_normal(size, dtype=np.float32) for n, size in enumerate(SIZES)]


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
