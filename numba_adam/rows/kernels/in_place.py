"""The update of rows of a table that have missed nothing, or are not to make up for it. Imports Numba.

Each row is updated where it lies. Rows far apart are what no CPU foresees: while one is updated, those a little ahead
are on their way into the second cache, both lines of each where it straddles two. What the rows cost is what memory
takes to deliver them.

Threads share the work in one of two ways. Few rows, which may be wide, are put in order by the calling thread, and each
thread updates a share of their pieces. Of many, each thread puts in order and updates the rows of one range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.np.unsafe.ndarray import to_fixed_tuple

from numba_adam.cpu.kernels.compile import inline, inlined, kernel, parallel_kernel
from numba_adam.cpu.kernels.element import adapt, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.prefetch import prefetch
from numba_adam.numerics import element
from numba_adam.numerics.constants import Constants
from numba_adam.rows.kernels.disjoint import load, store
from numba_adam.rows.kernels.grouping import Groups, first_outside, grouped, pairs_of, room_of, whole
from numba_adam.rows.kernels.partition import cuts, deal, lay_out, tally
from numba_adam.rows.kernels.replay import EXP_AVG, EXP_AVG_SQ, GRAD, MAX_EXP_AVG_SQ, PARAM
from numba_adam.rows.kernels.short_copy import copy

PIECE = 1024  # elements of a row that are updated in one go, by one thread
_BLOCK = 16  # elements whose loop has a length that the compiler knows
MANY = 2048  # rows for each thread, from which on it pays that each puts its own in order
_COUNTERS_APART = 8  # numbers that keep one thread's counts out of another's cache lines
_AHEAD = 20  # rows
_AHEAD_BYTES = 256  # of each: the CPU foresees the rest itself

_CONSTANTS = len(Constants._fields)
_largest = inline(element.largest)


class Push(NamedTuple):
    """What is to be done to which rows."""

    addresses: Any  # (5,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none), grad_rows
    groups: Any  # the distinct rows, and which rows of grad_rows are theirs
    width: Any  # elements of a row


class Places(NamedTuple):
    """Where a piece of a row lies, uint64."""

    param: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    grad: Any


@inlined
def _adam(p, size, c, like):  # type: ignore[no-untyped-def]
    """Update elements of a row."""
    for i in range(size):
        param = load(p.param, i, PARAM, like)
        exp_avg, exp_avg_sq = load(p.exp_avg, i, EXP_AVG, like), load(p.exp_avg_sq, i, EXP_AVG_SQ, like)
        exp_avg, exp_avg_sq = moments(param, load(p.grad, i, GRAD, like), exp_avg, exp_avg_sq, c)
        store(p.exp_avg, i, EXP_AVG, exp_avg)
        store(p.exp_avg_sq, i, EXP_AVG_SQ, exp_avg_sq)
        store(p.param, i, PARAM, adapt(param, exp_avg, exp_avg_sq, c))


@inlined
def _amsgrad(p, size, c, like):  # type: ignore[no-untyped-def]
    """Update elements of a row that keeps its largest second moment."""
    for i in range(size):
        param = load(p.param, i, PARAM, like)
        exp_avg, exp_avg_sq = load(p.exp_avg, i, EXP_AVG, like), load(p.exp_avg_sq, i, EXP_AVG_SQ, like)
        exp_avg, exp_avg_sq = moments(param, load(p.grad, i, GRAD, like), exp_avg, exp_avg_sq, c)
        terrain = _largest(load(p.max_exp_avg_sq, i, MAX_EXP_AVG_SQ, like), exp_avg_sq)
        store(p.exp_avg, i, EXP_AVG, exp_avg)
        store(p.exp_avg_sq, i, EXP_AVG_SQ, exp_avg_sq)
        store(p.max_exp_avg_sq, i, MAX_EXP_AVG_SQ, terrain)
        store(p.param, i, PARAM, adapt(param, exp_avg, terrain, c))


@inlined
def _moved(p, skip):  # type: ignore[no-untyped-def]
    """Return places so many bytes on."""
    return Places(p.param + skip, p.exp_avg + skip, p.exp_avg_sq + skip, p.max_exp_avg_sq + skip, p.grad + skip)


@inlined
def _update(p, size, has_largest, c, like):  # type: ignore[no-untyped-def]
    """Update a piece of a row, block by block: a loop over 16 elements, known to be 16, is one run of vector code."""
    skip = np.uint64(_BLOCK * like.itemsize)
    for _ in range(size // _BLOCK):
        if has_largest:
            _amsgrad(p, _BLOCK, c, like)
        else:
            _adam(p, _BLOCK, c, like)
        p = _moved(p, skip)
    if size % _BLOCK:
        if has_largest:
            _amsgrad(p, size % _BLOCK, c, like)
        else:
            _adam(p, size % _BLOCK, c, like)


@inlined
def _offset(row, column, push, like):  # type: ignore[no-untyped-def]
    """Return how many bytes behind an array's beginning an element lies."""
    return (np.uint64(row) * np.uint64(push.width) + np.uint64(column)) * np.uint64(like.itemsize)


@inlined
def _add(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = target[i] + source[i]


@inlined
def _gradient(push, k, column, size, sums):  # type: ignore[no-untyped-def]
    """Return where the gradient of a piece of a row lies: its own, or in `sums` that of all places, added in order."""
    begin, end = push.groups.starts[k], push.groups.starts[k + 1]
    first = push.addresses[GRAD] + _offset(push.groups.order[begin], column, push, sums)
    if end == begin + 1:
        return first
    total = np.uint64(sums.ctypes.data)
    copy(first, total, size, sums)
    for place in range(begin + 1, end):
        other = push.addresses[GRAD] + _offset(push.groups.order[place], column, push, sums)
        _add(array_at(other, np.uint64(size), sums), sums[:size])
    return total


@inlined
def _fetch(push, k, column, size, like):  # type: ignore[no-untyped-def]
    """Ask for a piece of a row and for its first gradient."""
    size_bytes = np.uint64(min(size * like.itemsize, _AHEAD_BYTES))
    skip, place = _offset(push.groups.rows[k], column, push, like), push.groups.order[push.groups.starts[k]]
    prefetch(push.addresses[PARAM] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG_SQ] + skip, size_bytes)
    if push.addresses[MAX_EXP_AVG_SQ]:
        prefetch(push.addresses[MAX_EXP_AVG_SQ] + skip, size_bytes)
    prefetch(push.addresses[GRAD] + _offset(place, column, push, like), size_bytes)


@inlined
def _piece(push, k, column, sums, c):  # type: ignore[no-untyped-def]
    """Update a piece of a row."""
    size, skip = min(push.width - column, PIECE), _offset(push.groups.rows[k], column, push, sums)
    a = push.addresses
    grad = _gradient(push, k, column, size, sums)
    places = Places(a[PARAM] + skip, a[EXP_AVG] + skip, a[EXP_AVG_SQ] + skip, a[MAX_EXP_AVG_SQ] + skip, grad)
    _update(places, size, a[MAX_EXP_AVG_SQ] != 0, c, sums)


@inline
def _share(size, task, tasks):  # type: ignore[no-untyped-def]
    """Return where one task's share of so many begins and ends."""
    share = (size + tasks - 1) // tasks
    return min(size, task * share), min(size, (task + 1) * share)


@inline
def _run(push, constants, task, tasks, sums):  # type: ignore[no-untyped-def]
    """Do one task's share of the pieces."""
    before = enter_ieee()
    c = Constants(*to_fixed_tuple(constants, _CONSTANTS))
    pieces = (push.width + PIECE - 1) // PIECE  # of a row
    begin, end = _share(push.groups.rows.size * pieces, task, tasks)
    k, piece = begin // pieces, begin % pieces
    for ahead in range(k, min(k + _AHEAD, push.groups.rows.size)):
        _fetch(push, ahead, piece * PIECE, push.width - piece * PIECE, sums)
    for _ in range(begin, end):
        if k + _AHEAD < push.groups.rows.size:
            _fetch(push, k + _AHEAD, piece * PIECE, push.width - piece * PIECE, sums)
        _piece(push, k, piece * PIECE, sums, c)
        piece += 1
        if piece == pieces:
            k, piece = k + 1, 0
    leave_ieee(before)


@inline
def _first(outside):  # type: ignore[no-untyped-def]
    """Return the first of the places that tasks have found, -1 where a task has found none."""
    for place in outside:
        if place >= 0:
            return place
    return np.int64(-1)


@kernel
def update_in_place_serial(addresses, rows, count, constants, width, room, sums):  # type: ignore[no-untyped-def]
    """Update rows on the calling thread, unless one of them is none of the table's.

    Args:
        addresses: as `Push` has it.
        rows: (k,) int64, in any order.
        count: number of rows of the table; times k below 2**61.
        constants: (16,) of the arrays' dtype: `Constants` of the step.
        width: elements of a row.
        room: (ROOM * k + tasks,) int64 or more, overwritten.
        sums: (tasks, PIECE) of the arrays' dtype, overwritten.

    Returns:
        The first place whose row is none of the table's: nothing was changed; -1 if all are.
    """
    outside, found = whole(rows, count, room)
    if outside < 0 and width > 0:
        _run(Push(addresses, found, width), constants, 0, 1, sums[0])
    return outside


@parallel_kernel
def update_in_place_by_pieces(addresses, rows, count, constants, width, room, sums):  # type: ignore[no-untyped-def]
    """Update few rows, each task a share of their pieces; as many tasks as `sums` has room for.

    Arguments and result as for `update_in_place_serial`.
    """
    tasks = len(sums)
    outside, found = whole(rows, count, room)
    distinct, starts, order = found  # a tuple of arrays cannot be handed to threads
    if outside < 0:  # and rows have elements, or there would be nothing for several tasks
        for task in prange(tasks):
            _run(Push(addresses, Groups(distinct, starts, order), width), constants, task, tasks, sums[task])
    return outside


@parallel_kernel
def update_in_place_by_parts(addresses, rows, count, constants, width, room, sums):  # type: ignore[no-untyped-def]
    """Update many rows, each task those of its part; as many tasks as `sums` has room for.

    Arguments and result as for `update_in_place_serial`.
    """
    tasks, size = len(sums), rows.size
    tallies, outside = np.zeros((tasks, tasks + _COUNTERS_APART), np.int64)[:, :tasks], np.empty(tasks, np.int64)
    cut, bounds = np.empty(tasks - 1, np.int64), np.empty(tasks + 1, np.int64)
    cuts(rows, cut)
    for task in prange(tasks):
        begin, end = _share(size, task, tasks)
        outside[task] = first_outside(rows, begin, end, count)
        if outside[task] < 0:
            tally(rows, begin, end, cut, tallies[task])
    first = _first(outside)
    if first >= 0:
        return first
    lay_out(tallies, bounds)
    for task in prange(tasks):
        begin, end = _share(size, task, tasks)
        deal(rows, begin, end, cut, tallies[task], pairs_of(room, size))
    for task in prange(tasks):
        found = grouped(room_of(room, bounds, task), size, count)
        _run(Push(addresses, found, width), constants, 0, 1, sums[task])
    return np.int64(-1)
