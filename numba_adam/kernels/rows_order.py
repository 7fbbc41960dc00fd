"""The distinct rows of a push, ascending, each with the places where it was named, in order. Imports Numba.

Only the rows that were named are looked at: nothing here grows with the table. Ascending rows are also the order in
which the table's memory is read best.
"""

from __future__ import annotations

import numpy as np

from numba_adam.kernels.compile import inline, kernel

ROOM = 5  # numbers of 64 bits for each row, and as many again
_MOST_BITS = 12  # of one digit of the sort: its counters, 32 kB, stay in the nearest cache


@inline
def _bits(value):  # type: ignore[no-untyped-def]
    """Return how many bits a number has."""
    bits = np.uint64(0)
    while value > 0:
        bits += np.uint64(1)
        value >>= 1
    return bits


@inline
def _first_outside(rows, count):  # type: ignore[no-untyped-def]
    """Return the first place whose row is not in the table, -1 if all are."""
    outside = 0
    for k in range(rows.size):  # without a way out, so that it is vector code
        outside += rows[k] < 0 or rows[k] >= count
    if outside:
        for k in range(rows.size):
            if rows[k] < 0 or rows[k] >= count:
                return k
    return -1


@inline
def _is_ascending(rows):  # type: ignore[no-untyped-def]
    """Say whether no row is smaller than the one before."""
    descents = 0
    for k in range(1, rows.size):  # without a way out, so that it is vector code
        descents += rows[k] < rows[k - 1]
    return descents == 0


@inline
def _by_digit(pairs, sorted_pairs, counters, shift, bits):  # type: ignore[no-untyped-def]
    """Sort by one digit; equal ones stay in their order."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    counters[:] = 0
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
def _sort(pairs, spare, shift, bits):  # type: ignore[no-untyped-def]
    """Return the pairs by the `bits` bits from `shift` on: digit by digit, the lowest first."""
    passes = (bits + np.uint64(_MOST_BITS - 1)) // np.uint64(_MOST_BITS)
    digit_bits = (bits + passes - np.uint64(1)) // max(passes, np.uint64(1))
    counters = np.empty(np.int64(1) << np.int64(digit_bits), np.uint64)
    for _ in range(passes):
        _by_digit(pairs, spare, counters, shift, digit_bits)
        pairs, spare = spare, pairs
        shift += digit_bits
    return pairs


@kernel
def group(rows, count, room):  # type: ignore[no-untyped-def]
    """Find the distinct rows of a push.

    A row and the place where it stands are sorted as one number of 64 bits, the row above the place.

    Args:
        rows: (k,) int64.
        count: number of rows of the table; times k below 2**61.
        room: (ROOM * (k + 1),) int64 or more, filled; fresh memory would take as long as the sort.

    Returns:
        (outside, distinct, starts, order): the first place whose row is not in the table, -1 if all are; the distinct
        rows, ascending; where each one's places begin in `order`, with the end behind the last; the
        places. All three lie in `room`.
    """
    size, part = rows.size, rows.size + 1
    distinct, starts, order = room[:part], room[part : 2 * part], room[2 * part : 2 * part + size]
    outside = _first_outside(rows, count)
    if outside >= 0:
        return outside, distinct[:0], starts[:0], order[:0]
    place_bits, row_bits = _bits(size), _bits(count)
    pairs = room[3 * part : 3 * part + size].view(np.uint64)
    spare = room[4 * part : 4 * part + size].view(np.uint64)
    for k in range(size):
        pairs[k] = (np.uint64(rows[k]) << place_bits) | np.uint64(k)
    if not _is_ascending(rows):
        pairs = _sort(pairs, spare, place_bits, row_bits)
    found, mask, before = 0, (np.uint64(1) << place_bits) - np.uint64(1), np.int64(-1)
    for k in range(size):
        row = np.int64(pairs[k] >> place_bits)
        order[k] = np.int64(pairs[k] & mask)
        if row != before:
            distinct[found], starts[found] = row, k
            found += 1
        before = row
    starts[found] = size
    return -1, distinct[:found], starts[: found + 1], order
