"""The update of rows of a table that have missed nothing, or are not to make up for it. Imports Numba.

Each row is updated where it lies. Rows far apart are what no CPU foresees: while one is updated, those a little ahead
are on their way into the second cache, both lines of each where it straddles two. What the rows cost is what memory
takes to deliver them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.np.unsafe.ndarray import to_fixed_tuple

from numba_adam import element
from numba_adam.folding import Constants
from numba_adam.kernels.compile import inline, inlined, kernel, parallel_kernel
from numba_adam.kernels.element import adapt, moments
from numba_adam.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.kernels.rows import EXP_AVG, EXP_AVG_SQ, GRAD, MAX_EXP_AVG_SQ, PARAM
from numba_adam.kernels.rows_apart import load, store
from numba_adam.kernels.rows_memory import copy, prefetch

PIECE = 1024  # elements of a row that are updated in one go, by one thread
_BLOCK = 16  # elements whose loop has a length that the compiler knows
_AHEAD = 20  # rows
_AHEAD_BYTES = 256  # of each: the CPU foresees the rest itself

_CONSTANTS = len(Constants._fields)
_largest = inline(element.largest)


class Push(NamedTuple):
    """What is to be done to which rows."""

    addresses: Any  # (5,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none), grad_rows
    rows: Any  # (k,) int64: the distinct rows
    starts: Any  # (k + 1,) int64: where each one's places begin in `order`
    order: Any  # int64: rows of grad_rows
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
    begin, end = push.starts[k], push.starts[k + 1]
    first = push.addresses[GRAD] + _offset(push.order[begin], column, push, sums)
    if end == begin + 1:
        return first
    total = np.uint64(sums.ctypes.data)
    copy(first, total, size, sums)
    for place in range(begin + 1, end):
        other = push.addresses[GRAD] + _offset(push.order[place], column, push, sums)
        _add(array_at(other, np.uint64(size), sums), sums[:size])
    return total


@inlined
def _fetch(push, k, column, size, like):  # type: ignore[no-untyped-def]
    """Ask for a piece of a row and for its first gradient."""
    skip, size_bytes = _offset(push.rows[k], column, push, like), np.uint64(min(size * like.itemsize, _AHEAD_BYTES))
    prefetch(push.addresses[PARAM] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG] + skip, size_bytes)
    prefetch(push.addresses[EXP_AVG_SQ] + skip, size_bytes)
    if push.addresses[MAX_EXP_AVG_SQ]:
        prefetch(push.addresses[MAX_EXP_AVG_SQ] + skip, size_bytes)
    prefetch(push.addresses[GRAD] + _offset(push.order[push.starts[k]], column, push, like), size_bytes)


@inlined
def _piece(push, k, column, sums, c):  # type: ignore[no-untyped-def]
    """Update a piece of a row."""
    size, skip = min(push.width - column, PIECE), _offset(push.rows[k], column, push, sums)
    a = push.addresses
    grad = _gradient(push, k, column, size, sums)
    places = Places(a[PARAM] + skip, a[EXP_AVG] + skip, a[EXP_AVG_SQ] + skip, a[MAX_EXP_AVG_SQ] + skip, grad)
    _update(places, size, a[MAX_EXP_AVG_SQ] != 0, c, sums)


@inlined
def _run(push, constants, task, tasks, sums):  # type: ignore[no-untyped-def]
    """Do one task's share of the pieces."""
    before = enter_ieee()
    c = Constants(*to_fixed_tuple(constants, _CONSTANTS))
    pieces = (push.width + PIECE - 1) // PIECE  # of a row
    count = push.rows.size * pieces
    share = (count + tasks - 1) // tasks
    begin, end = task * share, min(count, (task + 1) * share)
    k, piece = begin // pieces, begin % pieces
    for ahead in range(k, min(k + _AHEAD, push.rows.size)):
        _fetch(push, ahead, piece * PIECE, push.width - piece * PIECE, sums)
    for _ in range(begin, end):
        if k + _AHEAD < push.rows.size:
            _fetch(push, k + _AHEAD, piece * PIECE, push.width - piece * PIECE, sums)
        _piece(push, k, piece * PIECE, sums, c)
        piece += 1
        if piece == pieces:
            k, piece = k + 1, 0
    leave_ieee(before)


@kernel
def update_in_place_serial(addresses, rows, starts, order, constants, width, sums):  # type: ignore[no-untyped-def]
    """Update rows on the calling thread.

    Args:
        addresses: as `Push` has it, and so are those that follow.
        rows: the rows.
        starts: where their places begin.
        order: the places.
        constants: (15,) of the arrays' dtype: `folding.Constants` of the step.
        width: elements of a row, 1 or more.
        sums: (tasks, PIECE) of the arrays' dtype: room.
    """
    _run(Push(addresses, rows, starts, order, width), constants, 0, 1, sums[0])


@parallel_kernel
def update_in_place_parallel(addresses, rows, starts, order, constants, width, sums):  # type: ignore[no-untyped-def]
    """Update rows on as many threads as `sums` has room for. Arguments as for `update_in_place_serial`."""
    tasks = len(sums)
    for task in prange(tasks):
        _run(Push(addresses, rows, starts, order, width), constants, task, tasks, sums[task])
