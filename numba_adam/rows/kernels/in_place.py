"""The update of rows of a table in place, without a replay of missed steps. Imports Numba.

A CPU's own prefetcher cannot foresee rows that are far apart. So while one row is updated, the rows some distance ahead
are prefetched into the second-level cache, with all the lines that they touch. The time of an update is the time that
memory takes to deliver the rows.

Threads share an update in one of two ways. Few rows, which may be wide, are sorted by the calling thread, and each
thread updates a share of their pieces. Many rows are divided into ranges: each thread sorts and updates one range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from numba_adam.cpu.kernels.compile import array_kernel, inline, inlined, parallel_kernel
from numba_adam.cpu.kernels.constants import constants_of
from numba_adam.cpu.kernels.element import adapt, largest, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.prefetch import prefetch
from numba_adam.rows.kernels.disjoint import load, store
from numba_adam.rows.kernels.grouping import Groups, first_outside, grouped, pairs_of, scratch_of, whole
from numba_adam.rows.kernels.partition import assign_offsets, cuts, deal, tally
from numba_adam.rows.kernels.replay import EXP_AVG, EXP_AVG_SQ, GRAD, MAX_EXP_AVG_SQ, PARAM
from numba_adam.rows.kernels.short_copy import copy

PIECE = 1024  # elements of a row that one thread updates at a time
_UNROLLED = 16  # elements of a loop whose length the compiler knows
MANY = 2048  # rows per thread from which on sorting by each thread is faster
_PADDING = 8  # numbers between the counters of two threads, which must not share a cache line
_DISTANCE = 20  # rows from the update to the prefetch
_PREFETCHED_BYTES = 256  # of each row: the CPU's own prefetcher does the rest


class Push(NamedTuple):
    """The rows that a call updates, and their gradients."""

    addresses: Any  # (5,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none), grad_rows
    groups: Any  # the distinct rows, and the rows of grad_rows that belong to each
    width: Any  # elements of a row


class Addresses(NamedTuple):
    """The addresses of a piece of a row, uint64."""

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
        terrain = largest(load(p.max_exp_avg_sq, i, MAX_EXP_AVG_SQ, like), exp_avg_sq)
        store(p.exp_avg, i, EXP_AVG, exp_avg)
        store(p.exp_avg_sq, i, EXP_AVG_SQ, exp_avg_sq)
        store(p.max_exp_avg_sq, i, MAX_EXP_AVG_SQ, terrain)
        store(p.param, i, PARAM, adapt(param, exp_avg, terrain, c))


@inlined
def _advanced(p, skip):  # type: ignore[no-untyped-def]
    """Return the addresses `skip` bytes further on."""
    return Addresses(p.param + skip, p.exp_avg + skip, p.exp_avg_sq + skip, p.max_exp_avg_sq + skip, p.grad + skip)


@inlined
def _update(p, size, has_largest, c, like):  # type: ignore[no-untyped-def]
    """Update a piece of a row in loops over 16 elements: with a known length they are vector code without a test."""
    skip = np.uint64(_UNROLLED * like.itemsize)
    for _ in range(size // _UNROLLED):
        if has_largest:
            _amsgrad(p, _UNROLLED, c, like)
        else:
            _adam(p, _UNROLLED, c, like)
        p = _advanced(p, skip)
    if size % _UNROLLED:
        if has_largest:
            _amsgrad(p, size % _UNROLLED, c, like)
        else:
            _adam(p, size % _UNROLLED, c, like)


@inlined
def _offset(row, column, push, like):  # type: ignore[no-untyped-def]
    """Return the offset of an element in its array, in bytes."""
    return (np.uint64(row) * np.uint64(push.width) + np.uint64(column)) * np.uint64(like.itemsize)


@inlined
def _add(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = target[i] + source[i]


@inlined
def _gradient(push, k, column, size, sums):  # type: ignore[no-untyped-def]
    """Return the address of the gradient of a piece of a row; of several gradients, that of their sum, in `sums`."""
    begin, end = push.groups.starts[k], push.groups.starts[k + 1]
    first = push.addresses[GRAD] + _offset(push.groups.order[begin], column, push, sums)
    if end == begin + 1:
        return first
    total = np.uint64(sums.ctypes.data)
    copy(first, total, size, sums)
    for index in range(begin + 1, end):
        other = push.addresses[GRAD] + _offset(push.groups.order[index], column, push, sums)
        _add(array_at(other, np.uint64(size), sums), sums[:size])
    return total


@inlined
def _prefetch(push, k, column, size, like):  # type: ignore[no-untyped-def]
    """Prefetch a piece of a row and its first gradient."""
    size_bytes = np.uint64(min(size * like.itemsize, _PREFETCHED_BYTES))
    skip, first = _offset(push.groups.rows[k], column, push, like), push.groups.order[push.groups.starts[k]]
    prefetch(push.addresses[PARAM] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG_SQ] + skip, size_bytes)
    if push.addresses[MAX_EXP_AVG_SQ]:
        prefetch(push.addresses[MAX_EXP_AVG_SQ] + skip, size_bytes)
    prefetch(push.addresses[GRAD] + _offset(first, column, push, like), size_bytes)


@inlined
def _piece(push, k, column, sums, c):  # type: ignore[no-untyped-def]
    """Update a piece of a row."""
    size, skip = min(push.width - column, PIECE), _offset(push.groups.rows[k], column, push, sums)
    a = push.addresses
    grad = _gradient(push, k, column, size, sums)
    addresses = Addresses(a[PARAM] + skip, a[EXP_AVG] + skip, a[EXP_AVG_SQ] + skip, a[MAX_EXP_AVG_SQ] + skip, grad)
    _update(addresses, size, a[MAX_EXP_AVG_SQ] != 0, c, sums)


@inline
def _share(size, task, tasks):  # type: ignore[no-untyped-def]
    """Return where the share of one task in `size` items begins and ends."""
    share = (size + tasks - 1) // tasks
    return min(size, task * share), min(size, (task + 1) * share)


@inline
def _run(push, constants, task, tasks, sums):  # type: ignore[no-untyped-def]
    """Update one task's share of the pieces."""
    environment = enter_ieee()
    c = constants_of(constants)
    pieces = (push.width + PIECE - 1) // PIECE  # of a row
    begin, end = _share(push.groups.rows.size * pieces, task, tasks)
    k, piece = begin // pieces, begin % pieces
    for ahead in range(k, min(k + _DISTANCE, push.groups.rows.size)):
        _prefetch(push, ahead, piece * PIECE, push.width - piece * PIECE, sums)
    for _ in range(begin, end):
        if k + _DISTANCE < push.groups.rows.size:
            _prefetch(push, k + _DISTANCE, piece * PIECE, push.width - piece * PIECE, sums)
        _piece(push, k, piece * PIECE, sums, c)
        piece += 1
        if piece == pieces:
            k, piece = k + 1, 0
    leave_ieee(environment)


@inline
def _first(outside):  # type: ignore[no-untyped-def]
    """Return the first position that a task has found; each task has found one, or -1."""
    for position in outside:
        if position >= 0:
            return position
    return np.int64(-1)


@array_kernel
def update_in_place_serial(addresses, rows, count, constants, width, buffer, sums):  # type: ignore[no-untyped-def]
    """Update rows on the calling thread, unless a row is not in the table.

    Args:
        addresses: as `Push` has it.
        rows: (k,) int64, in any order.
        count: number of rows of the table; count * k is below 2**61.
        constants: (CONSTANTS,) of the arrays' dtype: `Constants` of the step.
        width: elements of a row.
        buffer: (SCRATCH * k + tasks,) int64 or more, overwritten.
        sums: (tasks, PIECE) of the arrays' dtype, overwritten.

    Returns:
        The first position whose row is not in the table, and nothing was changed; -1 if all rows are.
    """
    outside, found = whole(rows, count, buffer)
    if outside < 0 and width > 0:
        _run(Push(addresses, found, width), constants, 0, 1, sums[0])
    return outside


@parallel_kernel
def update_in_place_by_pieces(addresses, rows, count, constants, width, buffer, sums, tasks):  # type: ignore[no-untyped-def]
    """Update few rows on `tasks` threads: each updates a share of their pieces.

    Arguments and result as for `update_in_place_serial`.
    """
    outside, found = whole(rows, count, buffer)
    distinct, starts, order = found  # Numba cannot pass a tuple of arrays to threads
    if outside < 0:  # rows without elements never take several tasks
        for task in prange(tasks):
            _run(Push(addresses, Groups(distinct, starts, order), width), constants, task, tasks, sums[task])
    return outside


@parallel_kernel
def update_in_place_by_parts(addresses, rows, count, constants, width, buffer, sums, tasks):  # type: ignore[no-untyped-def]
    """Update many rows on `tasks` threads: each sorts and updates the rows of one part.

    Arguments and result as for `update_in_place_serial`.
    """
    size = rows.size
    tallies, outside = np.zeros((tasks, tasks + _PADDING), np.int64)[:, :tasks], np.empty(tasks, np.int64)
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
    assign_offsets(tallies, bounds)
    for task in prange(tasks):
        begin, end = _share(size, task, tasks)
        deal(rows, begin, end, cut, tallies[task], pairs_of(buffer, size))
    for task in prange(tasks):
        found = grouped(scratch_of(buffer, bounds, task), size, count)
        _run(Push(addresses, found, width), constants, 0, 1, sums[task])
    return np.int64(-1)
