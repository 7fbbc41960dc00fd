"""The update of rows of a table in place, without a replay of missed steps. Imports Numba.

A CPU's own prefetcher cannot foresee rows that are far apart. So while one row is updated, the rows some distance ahead
are prefetched into the second-level cache, with all the lines that they touch. The time of an update is the time that
memory takes to deliver the rows.

Threads share an update in one of two ways. Few rows, which may be wide, are sorted by the calling thread, and each
thread updates a share of their pieces. Many rows are divided into ranges (see `partition`): each thread sorts and
updates one range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined, kernel
from numba_adam.cpu.kernels.constants import CONSTANTS, constants_of
from numba_adam.cpu.kernels.element import adapt, largest, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.intrinsics import buffer as stack_buffer
from numba_adam.cpu.kernels.prefetch import prefetch
from numba_adam.rows.kernels.disjoint import load, store
from numba_adam.rows.kernels.grouping import grouped, groups_in, make_pairs, scratch_of
from numba_adam.rows.kernels.partition import (
    BOUNDS,
    DISTINCT,
    DISTINCT_BEGIN,
    OUTSIDE,
    PIECES,
    STAGE,
    WHOLE,
    numbers_before,
    share_of,
)
from numba_adam.rows.kernels.replay import EXP_AVG, EXP_AVG_SQ, GRAD, MAX_EXP_AVG_SQ, PARAM
from numba_adam.rows.kernels.short_copy import copy

PIECE = 1024  # elements of a row that one thread updates at a time
_UNROLLED = np.int64(16)  # elements of a loop whose length the compiler knows
MANY = 2048  # rows per thread from which on sorting by each thread is faster
_DISTANCE = 20  # pieces from the update to the prefetch
_PREFETCHED_BYTES = 256  # of each piece: the CPU's own prefetcher does the rest
_ADDRESSES = 5
_INT64 = np.empty(0, np.int64)


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
    skip = np.uint64(_UNROLLED) * np.uint64(like.itemsize)
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
    size_bytes = np.uint64(size * like.itemsize)
    if size_bytes > np.uint64(_PREFETCHED_BYTES):
        size_bytes = np.uint64(_PREFETCHED_BYTES)
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
    size, skip = push.width - column, _offset(push.groups.rows[k], column, push, sums)
    if size > PIECE:
        size = PIECE
    a = push.addresses
    grad = _gradient(push, k, column, size, sums)
    addresses = Addresses(a[PARAM] + skip, a[EXP_AVG] + skip, a[EXP_AVG_SQ] + skip, a[MAX_EXP_AVG_SQ] + skip, grad)
    _update(addresses, size, a[MAX_EXP_AVG_SQ] != 0, c, sums)


@inlined
def _following(k, column, width):  # type: ignore[no-untyped-def]
    """Return the row and the column of the piece after one."""
    column += PIECE
    return (k, column) if column < width else (k + 1, 0)


@inline
def _run(push, constants, task, tasks, sums):  # type: ignore[no-untyped-def]
    """Update one task's share of the pieces."""
    environment = enter_ieee()
    c = constants_of(constants)
    pieces = (push.width + PIECE - 1) // PIECE  # of a row
    total = push.groups.rows.size * pieces
    begin, end = share_of(total, task, tasks)
    k, column = begin // pieces, begin % pieces * PIECE
    later, later_column = k, column
    for number in range(begin - _DISTANCE, end):
        if number + _DISTANCE < total:
            _prefetch(push, later, later_column, push.width - later_column, sums)
            later, later_column = _following(later, later_column, push.width)
        if number >= begin:
            _piece(push, k, column, sums, c)
            k, column = _following(k, column, push.width)
    leave_ieee(environment)


@kernel
def update_in_place(packed, like, numbers, count, task, tasks):  # type: ignore[no-untyped-def]
    """Update rows, or one share of them. See `threads.launch` for the arguments.

    In the stage WHOLE, of one task, all rows are sorted and updated, unless one is not in the table. In the stage PARTS
    each task sorts and updates the rows of one part, which `partition.divide` has made. In the stage PIECES the rows
    are sorted already, and each task updates a share of their pieces.

    Args:
        packed: (4, 2) uint64: addresses of param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none) and grad_rows; address
            and length of the rows, int64, as the caller named them; the width of a row.
        like: (1, CONSTANTS) of the arrays' dtype: `Constants` of the step.
        numbers: int64: `partition.Numbers`, then the buffer of `grouping.group`.
        count: number of rows of the table.
        task: which share.
        tasks: number of shares.
    """
    if task == tasks:
        return
    rows, width = array_at(packed[2, 1], packed[3, 0], _INT64), np.int64(packed[3, 1])
    buffer = numbers[numbers_before(tasks) :]
    if numbers[STAGE] == WHOLE:
        numbers[OUTSIDE] = make_pairs(rows, count, buffer)
        if numbers[OUTSIDE] >= 0 or width == 0:
            return
    if numbers[STAGE] == PIECES:
        groups = groups_in(buffer, rows.size, numbers[DISTINCT], numbers[DISTINCT_BEGIN])
        share, shares = task, tasks
    else:
        begin, end = numbers[BOUNDS + task], numbers[BOUNDS + task + 1]
        groups = grouped(scratch_of(buffer, rows.size, begin, end, task), rows.size, count)
        share, shares = np.int64(0), np.int64(1)
    push = Push(array_at(np.uint64(packed.ctypes.data), np.uint64(_ADDRESSES), packed), groups, width)
    constants = array_at(np.uint64(like.ctypes.data), np.uint64(CONSTANTS), like)
    _run(push, constants, share, shares, stack_buffer(PIECE, like))
