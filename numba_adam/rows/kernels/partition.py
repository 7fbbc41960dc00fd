"""The places of a push, cut into one part for each thread. Imports Numba.

A part is a range of rows, so all places of a row are in the same part: threads have nothing to agree on but where parts
begin, and each keeps to its own stretch of the table. First each thread counts how many places of its share belong to
which part; then it puts them there, in their order.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline
from numba_adam.cpu.kernels.formats import random_bits
from numba_adam.rows.kernels.grouping import bits_of, pair, sort

_SAMPLE, _SAMPLE_PART = 512, 64  # places looked at: so many, and so many more for each part
_KEY = np.uint32(1)


@inline
def cuts(rows, cut):  # type: ignore[no-untyped-def]
    """Fill `cut`, (parts - 1,) int64, with the rows at which parts begin but for the first.

    A sorted sample of the places says where: parts then differ by a tenth or so, but for a row that is named so often
    that it fills one. A place is drawn at random from each stretch of the push: a push may have a period, say of the
    features of its examples, which places at equal distances would meet in step. What is drawn is the same every time.
    Rows that are none of the table's do no harm.
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
    """Return the part that a row belongs to. Without a way out it is vector code, and beats a search of the cuts."""
    part = 0
    for k in range(cut.size):
        part += row >= cut[k]
    return part


@inline
def tally(rows, begin, end, cut, tallies):  # type: ignore[no-untyped-def]
    """Add to `tallies`, (parts,) int64, how many of the places from `begin` to `end` belong to each part."""
    for k in range(begin, end):
        tallies[_part(rows[k], cut)] += 1


@inline
def lay_out(tallies, bounds):  # type: ignore[no-untyped-def]
    """Turn the tallies of each share of the places into where its pairs of each part begin.

    Args:
        tallies: (shares, parts) int64, overwritten; shares in the order of their places.
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
    """Put the places from `begin` to `end`, each with its row, where their parts have room for them.

    Args:
        rows: (k,) int64.
        begin: the first place.
        end: the one behind the last.
        cut: from `cuts`.
        begins: (parts,) int64, from `lay_out`: where this share's pairs of each part begin; moved on.
        pairs: (k,) uint64, filled.
    """
    place_bits = bits_of(rows.size)
    for k in range(begin, end):
        part = _part(rows[k], cut)
        pairs[begins[part]] = pair(rows, k, place_bits)
        begins[part] += 1
