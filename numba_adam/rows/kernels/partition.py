"""The positions of a call, divided into one part for each thread. Imports Numba.

A part is a range of rows, so all positions of a row are in the same part. Threads only have to agree on where parts
begin, and each works on its own range of the table. First each thread counts how many positions of its share belong to
each part; then it moves them there, in order.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.formats import random_bits
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.rows.kernels.grouping import bits_of, first_outside, pair, pairs_of, sort

_SAMPLE, _SAMPLE_PART = 512, 64  # sampled positions: a fixed number, and a number for each part
_KEY = np.uint32(1)
PADDING = 8  # numbers between the counters of two threads, which must not share a cache line
COUNT, DEAL, PARTS, PIECES, WHOLE = range(5)  # stages of a call

# Entries of the numbers that precede the buffer of a call.
STAGE = 0
OUTSIDE = 1  # the first position whose row is not in the table; -1 if all rows are
DISTINCT, DISTINCT_BEGIN = 2, 3  # from `grouping.group`
BOUNDS = 4  # and following: where each part begins, and where the last one ends
_INT64 = np.empty(0, np.int64)


@inline
def cuts(rows, cut, buffer):  # type: ignore[no-untyped-def]
    """Fill `cut`, (parts - 1,) int64, with the first row of each part but the first part.

    The rows come from a sorted sample of the positions, so the sizes of parts differ by about a tenth, unless a row is
    named so often that it fills a part. One position is drawn at random from each stretch of the call: a call may be
    periodic, for example in the features of its examples, and positions at equal distances would always hit the same
    feature. The draw is the same every time. Rows that are not in the table do no harm. `buffer` is that of the call.
    """
    parts = cut.size + 1
    size = _SAMPLE + _SAMPLE_PART * parts
    if rows.size < size:
        size = rows.size
    memory = pairs_of(buffer, 2 * size)
    sample, spare = memory[:size], memory[size:]
    largest = np.uint64(0)
    stretch = rows.size // size
    for k in range(size):
        skip = np.int64(random_bits(_KEY, np.uint32(k))) % stretch
        sample[k] = np.uint64(rows[k * stretch + skip])
        if sample[k] > largest:
            largest = sample[k]
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


@inline
def share_of(size, task, tasks):  # type: ignore[no-untyped-def]
    """Return where the share of one task in `size` items begins and ends."""
    share = (size + tasks - 1) // tasks
    begin, end = task * share, (task + 1) * share
    return begin if begin < size else size, end if end < size else size


@kernel
def find_cuts(rows, cut, buffer):  # type: ignore[no-untyped-def]
    """Call `cuts`."""
    cuts(rows, cut, buffer)


@inline
def numbers_before(parts):  # type: ignore[no-untyped-def]
    """Return how many numbers precede the buffer of a call."""
    return BOUNDS + parts + 1


@kernel
def divide(packed, like, numbers, count, task, tasks):  # type: ignore[no-untyped-def]
    """Move one task's share of the positions to their parts, in two launches. See `threads.launch` for the arguments.

    The first launch, COUNT, counts the positions of each part, and finds the first position whose row is not in the
    table. If there is none, the second launch, DEAL, moves the positions.

    Args:
        packed: as for `in_place.update_in_place`.
        like: (tasks + 1, tasks + PADDING) int64: zeros; in the last row, from `cuts`, the first row of each part but
            the first part. The other rows are filled: a task's tallies, then the position that it found.
        numbers: int64: the numbers of the call, then its buffer; OUTSIDE and BOUNDS are filled.
        count: number of rows of the table.
        task: which share.
        tasks: number of shares, and of parts.
    """
    rows = array_at(packed[2, 1], packed[3, 0], _INT64)
    table = array_at(np.uint64(like.ctypes.data), (np.uint64(tasks + 1), np.uint64(tasks + PADDING)), _INT64)
    tallies, found, cut = table[:tasks, :tasks], table[:tasks, tasks], table[tasks, : tasks - 1]
    if task == tasks:
        if numbers[STAGE] == COUNT:
            numbers[OUTSIDE] = _first(found)
            assign_offsets(tallies, numbers[BOUNDS:])
        return
    begin, end = share_of(rows.size, task, tasks)
    if numbers[STAGE] == DEAL:
        deal(rows, begin, end, cut, tallies[task], pairs_of(numbers[numbers_before(tasks) :], rows.size))
        return
    found[task] = first_outside(rows, begin, end, count)
    if found[task] < 0:
        tally(rows, begin, end, cut, tallies[task])


@inline
def _first(outside):  # type: ignore[no-untyped-def]
    """Return the first position that a task has found; each task has found one, or -1."""
    for position in outside:
        if position >= 0:
            return position
    return np.int64(-1)
