"""The checksums match published values and their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.ps import checksum
from numba_adam.ps.checksum import CRC32C, XXH3_64, new_checksum

KNOWN = [
    (XXH3_64, b"", 0x2D06800538D394C2),  # xxHash's own sanity values
    (CRC32C, b"", 0),
    (CRC32C, b"123456789", 0xE3069283),  # the check value of CRC-32/ISCSI; RFC 3720 B.4 below
    (CRC32C, bytes(32), 0x8A9136AA),
    (CRC32C, b"\xff" * 32, 0x62A8AB43),
]


@pytest.mark.parametrize(("kind", "data", "expected"), KNOWN)
def test_checksums_match_published_values(kind, data, expected):
    summed = new_checksum(kind)
    summed.update(data)
    assert summed.value() == expected


@pytest.mark.parametrize("kind", checksum.SUPPORTED)
@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=4))
def test_dividing_the_data_does_not_change_the_checksum(kind, data, cuts):
    whole, pieces = new_checksum(kind), new_checksum(kind)
    whole.update(data)
    borders = [0, *sorted(cuts), len(data)]
    for start, stop in itertools.pairwise(borders):
        pieces.update(memoryview(data)[start:stop])
    assert pieces.value() == whole.value()


@pytest.mark.parametrize("kind", checksum.SUPPORTED)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_memory_of_any_format_counts_as_its_bytes(kind, shape):
    array = np.full(shape, 1.5, np.float64)
    typed, raw = new_checksum(kind), new_checksum(kind)
    typed.update(array)
    raw.update(array.tobytes())
    assert typed.value() == raw.value()


@pytest.mark.parametrize("kind", [0, 3, -1])
def test_an_unknown_kind_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"CHECKSUM_KIND_XXH3_64 \(1\), CHECKSUM_KIND_CRC32C \(2\)"):
        new_checksum(kind)
