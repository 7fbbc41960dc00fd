"""The positions of a call, divided into one part for each thread. Imports Numba.

A part is a range of rows, so all positions of a row are in the same part. Threads only have to agree on where parts
begin, and each works on its own range of the table. First each thread counts how many positions of its share belong to
each part; then it moves them there, in order.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import array_inline, inline
from numba_adam.cpu.kernels.formats import random_bits
from numba_adam.rows.kernels.grouping import bits_of, pair, sort

_SAMPLE, _SAMPLE_PART = 512, 64  # sampled positions: a fixed number, and a number for each part
_KEY = np.uint32(1)


@array_inline
def cuts(rows, cut):  # type: ignore[no-untyped-def]
    """Fill `cut`, (parts - 1,) int64, with the first row of each part but the first part.

    The rows come from a sorted sample of the positions, so the sizes of parts differ by about a tenth, unless a row is
    named so often that it fills a part. One position is drawn at random from each stretch of the call: a call may be
    periodic, for example in the features of its examples, and positions at equal distances would always hit the same
    feature. The draw is the same every time. Rows that are not in the table do no harm.
    """
    parts = cut.size + 1
    size = min(rows.size, _SAMPLE + _SAMPLE_PART * parts)
    sample, spare = np.empty(size, np.uint64), np.empty(size, np.uint64)
    largest = np.uint64(0)
    stretch = rows.size // size
    for k in range(size):
        skip = np.int64(random_bits(_KEY, np.uint32(k))) % stretch
        sample[k] = np.uint64(rows[k * stretch + skip])
        largest = max(largest, sample[k])
    sample, spare = sort(sample, spare, np.uint64(0), bits_of(largest))
    for part in range(1, parts):
        cut[part - 1] = np.int64(sample[part * size // parts])


@inline
def _part(row, cut):  # type: ignore[no-untyped-def]
    """Return the part that a row belongs to. Without an early exit the loop vectorizes, and beats a binary search."""
    part = 0
    for k in range(cut.size):
        part += row >= cut[k]
    return part


@inline
def tally(rows, begin, end, cut, tallies):  # type: ignore[no-untyped-def]
    """Add to `tallies`, (parts,) int64, the number of positions from `begin` to `end` that belong to each part."""
    for k in range(begin, end):
        tallies[_part(rows[k], cut)] += 1


@inline
def assign_offsets(tallies, bounds):  # type: ignore[no-untyped-def]
    """Replace the tallies of each share of the positions by the offsets at which its pairs of each part begin.

    Args:
        tallies: (shares, parts) int64, overwritten; shares in the order of their positions.
        bounds: (parts + 1,) int64, filled: where each part begins, and where the last one ends.
    """
    shares, parts = tallies.shape
    begin = 0
    for part in range(parts):
        bounds[part] = begin
        for share in range(shares):
            begin, tallies[share, part] = begin + tallies[share, part], begin
    bounds[parts] = begin


@inline
def deal(rows, begin, end, cut, begins, pairs):  # type: ignore[no-untyped-def]
    """Move the positions from `begin` to `end`, each paired with its row, to their parts.

    Args:
        rows: (k,) int64.
        begin: the first position.
        end: the one after the last.
        cut: from `cuts`.
        begins: (parts,) int64, from `assign_offsets`: where this share's pairs of each part begin; advanced.
        pairs: (k,) uint64, filled.
    """
    position_bits = bits_of(rows.size)
    for k in range(begin, end):
        part = _part(rows[k], cut)
        pairs[begins[part]] = pair(rows, k, position_bits)
        begins[part] += 1
