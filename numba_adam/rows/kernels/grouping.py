"""The distinct rows of a push, each with the places where it was named, in order. Imports Numba.

Only the rows that were named are looked at: nothing here grows with the table. A row and the place where it stands are
sorted as one number of 64 bits, the row above the place. Rows ascend, which is also the order in which the table's
memory is read best. What is found is written over the memory that was sorted in: memory is what this takes time for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel

ROOM = 3  # numbers of 64 bits for each place; and one more for each part that is put in order on its own
_MOST_BITS = 12  # of one digit of the sort: its counters, 32 kB, stay in the nearest cache


class Room(NamedTuple):
    """Memory in which places are put in order."""

    pairs: Any  # (k,) uint64: the rows with their places
    spare: Any  # (k,) uint64
    starts: Any  # (k + 1,) int64


class Groups(NamedTuple):
    """Distinct rows, and where they were named."""

    rows: Any  # int64: the distinct rows, ascending
    starts: Any  # int64, one more: where each one's places begin in `order`, with the end behind the last
    order: Any  # int64: the places


@inline
def bits_of(value):  # type: ignore[no-untyped-def]
    """Return how many bits a number has."""
    bits = np.uint64(0)
    while value > 0:
        bits += np.uint64(1)
        value >>= 1
    return bits


@inline
def pairs_of(room, size):  # type: ignore[no-untyped-def]
    """Return where in the room of a push, of so many places, the pairs of all parts lie."""
    return room[:size].view(np.uint64)


@inline
def room_of(room, bounds, part):  # type: ignore[no-untyped-def]
    """Return a part's own of the room of a push.

    Args:
        room: (ROOM * k + parts,) int64 or more.
        bounds: (parts + 1,) int64: where each part begins, from 0 on, and where the last one ends, k.
        part: which part, from 0 on.
    """
    begin, end, size = bounds[part], bounds[part + 1], bounds[-1]
    spare, starts = room[size : 2 * size].view(np.uint64), room[2 * size + part :]
    return Room(pairs_of(room, size)[begin:end], spare[begin:end], starts[begin : end + 1])


@inline
def first_outside(rows, begin, end, count):  # type: ignore[no-untyped-def]
    """Return the first place, from `begin` to `end`, whose row is not in a table of `count`; -1 if all are."""
    outside = 0
    for k in range(begin, end):  # without a way out, so that it is vector code
        outside += rows[k] < 0 or rows[k] >= count
    if outside:
        for k in range(begin, end):
            if rows[k] < 0 or rows[k] >= count:
                return k
    return -1


@inline
def pair(rows, k, place_bits):  # type: ignore[no-untyped-def]
    """Return a row and its place as one number, the row above the place."""
    return (np.uint64(rows[k]) << place_bits) | np.uint64(k)


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
def sort(pairs, spare, shift, bits):  # type: ignore[no-untyped-def]
    """Return the pairs, sorted by the `bits` bits from `shift` on, lowest digit first; and the memory that is left."""
    passes = max(np.uint64(1), (bits + np.uint64(_MOST_BITS - 1)) // np.uint64(_MOST_BITS))
    digit_bits = (bits + passes - np.uint64(1)) // passes
    counters = np.empty(np.int64(1) << np.int64(digit_bits), np.uint64)
    for _ in range(passes):
        _by_digit(pairs, spare, counters, shift, digit_bits)
        pairs, spare = spare, pairs
        shift += digit_bits
    return pairs, spare


@inline
def _is_ascending(pairs):  # type: ignore[no-untyped-def]
    """Say whether no pair is smaller than the one before."""
    descents = 0
    for k in range(1, pairs.size):  # without a way out, so that it is vector code
        descents += pairs[k] < pairs[k - 1]
    return descents == 0


@inline
def grouped(room, size, count):  # type: ignore[no-untyped-def]
    """Return the distinct rows of a part and their places, written over the room that its pairs lie in.

    Args:
        room: the part's own `Room`, pairs filled.
        size: how many places the whole push has.
        count: number of rows of the table.
    """
    pairs, spare, starts = room
    place_bits = bits_of(size)
    if not _is_ascending(pairs):
        pairs, spare = sort(pairs, spare, place_bits, bits_of(count))
    order, distinct = pairs.view(np.int64), spare.view(np.int64)
    found, mask, before = 0, (np.uint64(1) << place_bits) - np.uint64(1), np.int64(-1)
    for k in range(pairs.size):
        row, place = np.int64(pairs[k] >> place_bits), np.int64(pairs[k] & mask)
        order[k] = place
        if row != before:
            distinct[found], starts[found] = row, k
            found += 1
        before = row
    starts[found] = pairs.size
    return Groups(distinct[:found], starts[: found + 1], order)


@inline
def whole(rows, count, room):  # type: ignore[no-untyped-def]
    """Return the first place whose row is none of the table's, -1 if all are; and then all rows as one part, else none.

    Arguments as for `group`.
    """
    outside = first_outside(rows, 0, rows.size, count)
    size, place_bits = rows.size if outside < 0 else 0, bits_of(rows.size)
    pairs = pairs_of(room, size)
    for k in range(size):
        pairs[k] = pair(rows, k, place_bits)
    return outside, grouped(room_of(room, np.array([0, size]), 0), rows.size, count)


@kernel
def group(rows, count, room):  # type: ignore[no-untyped-def]
    """Find the distinct rows of a push.

    Args:
        rows: (k,) int64.
        count: number of rows of the table; times k below 2**61.
        room: (ROOM * k + 1,) int64 or more, overwritten; fresh memory would take as long as the sort.

    Returns:
        (outside, rows, starts, order): the first place whose row is none of the table's, -1 if all are; then `Groups`,
        which lie in `room`.
    """
    outside, found = whole(rows, count, room)
    return outside, found.rows, found.starts, found.order
