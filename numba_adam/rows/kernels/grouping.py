"""The distinct rows that a call names, each with the positions where it is named, in order. Imports Numba.

The work depends on the number of positions, not on the size of the table. A row and its position are sorted as one
number of 64 bits, with the row in the upper bits. So rows ascend, the best order for reading the table's memory. The
results overwrite the memory of the sort, because most of the time goes into memory accesses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import array_inline, array_inlined, inline, kernel
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.intrinsics import buffer as stack_buffer

SCRATCH = 3  # numbers of 64 bits per position; plus one per part that is sorted separately
_MAX_BITS = 12  # of one digit of the sort: its counters, 32 kB, stay in the innermost cache
_MAX_DIGITS = 1 << _MAX_BITS
_INT64, _UINT64 = np.empty(0, np.int64), np.empty(0, np.uint64)


class Scratch(NamedTuple):
    """Memory for sorting positions."""

    pairs: Any  # (k,) uint64: rows with their positions
    spare: Any  # (k,) uint64
    starts: Any  # (k + 1,) int64


class Groups(NamedTuple):
    """Distinct rows, and the positions where they are named."""

    rows: Any  # int64: the distinct rows, ascending
    starts: Any  # int64: where the positions of each row begin in `order`; one more entry: where those of the last end
    order: Any  # int64: the positions, grouped by row


@inline
def bits_of(value):  # type: ignore[no-untyped-def]
    """Return the number of bits of an integer."""
    bits = np.uint64(0)
    while value > 0:
        bits += np.uint64(1)
        value >>= 1
    return bits


@array_inline
def pairs_of(buffer, size):  # type: ignore[no-untyped-def]
    """Return the pairs of all parts of a call that names `size` positions."""
    return _words_at(buffer, 0, size)


@array_inlined
def _words_at(buffer, begin, size):  # type: ignore[no-untyped-def]
    """Return entries of a buffer as uint64. Numba compiles several functions for a view of another dtype."""
    skip = np.uint64(begin) * np.uint64(buffer.itemsize)
    return array_at(np.uint64(buffer.ctypes.data) + skip, np.uint64(size), _UINT64)


@inline
def scratch_of(buffer, size, begin, end, part):  # type: ignore[no-untyped-def]
    """Return the share of one part in the buffer of a call.

    Args:
        buffer: (SCRATCH * size + parts,) int64 or more.
        size: number of positions of the call.
        begin: where the part begins.
        end: where it ends.
        part: its number, from 0 on.
    """
    begins = 2 * size + begin + part
    return Scratch(
        _words_at(buffer, begin, end - begin),
        _words_at(buffer, size + begin, end - begin),
        buffer[begins : begins + end - begin + 1],
    )


@inline
def first_outside(rows, begin, end, count):  # type: ignore[no-untyped-def]
    """Return the first position from `begin` to `end` whose row is not in a table of `count` rows; -1 if all are."""
    outside = 0
    for k in range(begin, end):  # no early exit, so it vectorizes
        outside += rows[k] < 0 or rows[k] >= count
    if outside:
        for k in range(begin, end):
            if rows[k] < 0 or rows[k] >= count:
                return k
    return -1


@inline
def pair(rows, k, position_bits):  # type: ignore[no-untyped-def]
    """Return a row and its position as one number, with the row in the upper bits."""
    return (np.uint64(rows[k]) << position_bits) | np.uint64(k)


@inline
def _by_digit(pairs, sorted_pairs, counters, shift, bits):  # type: ignore[no-untyped-def]
    """Sort by one digit; equal digits keep their order."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    for digit in range(counters.size):
        counters[digit] = np.uint64(0)
    for k in range(pairs.size):
        counters[(pairs[k] >> shift) & mask] += np.uint64(1)
    begin = np.uint64(0)
    for digit in range(counters.size):
        begin, counters[digit] = begin + counters[digit], begin
    for k in range(pairs.size):
        digit = (pairs[k] >> shift) & mask
        sorted_pairs[counters[digit]] = pairs[k]
        counters[digit] += np.uint64(1)


@inline
def sort(pairs, spare, shift, bits):  # type: ignore[no-untyped-def]
    """Return the pairs sorted by `bits` bits from bit `shift` on, lowest digit first, and the unused memory."""
    passes = (bits + np.uint64(_MAX_BITS - 1)) // np.uint64(_MAX_BITS)
    if passes == np.uint64(0):
        passes = np.uint64(1)
    digit_bits = (bits + passes - np.uint64(1)) // passes
    counters = stack_buffer(_MAX_DIGITS, pairs)[: np.uint64(1) << digit_bits]
    for _ in range(passes):
        _by_digit(pairs, spare, counters, shift, digit_bits)
        pairs, spare = spare, pairs
        shift += digit_bits
    return pairs, spare


@inline
def _is_ascending(pairs):  # type: ignore[no-untyped-def]
    """Say whether no pair is smaller than its predecessor."""
    descents = 0
    for k in range(1, pairs.size):  # no early exit, so it vectorizes
        descents += pairs[k] < pairs[k - 1]
    return descents == 0


@inline
def grouped(scratch, size, count):  # type: ignore[no-untyped-def]
    """Return the distinct rows of a part and their positions, in the memory of its pairs.

    Args:
        scratch: the part's `Scratch`, with its pairs.
        size: number of positions of the whole call.
        count: number of rows of the table.
    """
    pairs, spare, starts = scratch
    position_bits = bits_of(size)
    if not _is_ascending(pairs):
        pairs, spare = sort(pairs, spare, position_bits, bits_of(count))
    order, distinct = _numbers_of(pairs), _numbers_of(spare)
    found, mask, previous = 0, (np.uint64(1) << position_bits) - np.uint64(1), np.int64(-1)
    for k in range(pairs.size):
        row, position = np.int64(pairs[k] >> position_bits), np.int64(pairs[k] & mask)
        order[k] = position
        if row != previous:
            distinct[found], starts[found] = row, k
            found += 1
        previous = row
    starts[found] = pairs.size
    return Groups(distinct[:found], starts[: found + 1], order)


@array_inlined
def _numbers_of(words):  # type: ignore[no-untyped-def]
    """Return the memory of an array of uint64 as int64."""
    return array_at(np.uint64(words.ctypes.data), words.size, _INT64)


@inline
def make_pairs(rows, count, buffer):  # type: ignore[no-untyped-def]
    """Make the pairs of a call in one part, unless a row is not in the table. Arguments as for `group`.

    Returns:
        the first position whose row is not in the table; -1 if all are.
    """
    outside = first_outside(rows, 0, rows.size, count)
    if outside < 0:
        position_bits, pairs = bits_of(rows.size), pairs_of(buffer, rows.size)
        for k in range(rows.size):
            pairs[k] = pair(rows, k, position_bits)
    return outside


@inline
def groups_in(buffer, size, count, begin):  # type: ignore[no-untyped-def]
    """Return the `Groups` that `group` wrote into a buffer.

    Args:
        buffer: of a call that names `size` positions.
        size: number of positions.
        count: number of distinct rows.
        begin: where they begin in `buffer`: 0 or `size`; the positions begin at `size` or 0.
    """
    starts = buffer[2 * size : 2 * size + count + 1]
    return Groups(buffer[begin : begin + count], starts, buffer[size - begin : 2 * size - begin])


@kernel
def group(rows, count, buffer):  # type: ignore[no-untyped-def]
    """Find the distinct rows of a call, and write `Groups` into a buffer.

    Args:
        rows: (k,) int64.
        count: number of rows of the table; count * k is below 2**61.
        buffer: (SCRATCH * k + 1,) int64 or more, overwritten; new memory would take as long as the sort.

    Returns:
        (outside, count, begin): the first position whose row is not in the table, -1 if all are; the number of
        distinct rows, and where they begin in `buffer`, see `groups_in`.
    """
    outside = make_pairs(rows, count, buffer)
    size = rows.size if outside < 0 else 0
    found = grouped(scratch_of(buffer, size, 0, size, 0), size, count)
    begin = 0 if found.rows.ctypes.data == buffer.ctypes.data else size
    return outside, found.rows.size, begin
