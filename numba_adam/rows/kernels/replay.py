"""The update of rows of a table, each after the steps it has missed. Imports Numba.

Rows are worked on tile by tile: up to 64 rows (or a piece of one wide row) are copied into a scratch that stays in the
nearest cache, updated there as one run of elements, and copied back, while those of the next tile are on their way. So
narrow rows are vector code too. The rows of a tile are ordered by the first step they have missed: at any step those to
be replayed are neighbours. Rows that are not to make up for anything need none of this: see `rows_in_place`.

What a replay may leave out changes no bit: an element whose first moment is zero keeps its parameter when there is no
gradient and no decay, and one whose moments are both zero keeps everything. As a row's gradient fades, it becomes quiet
first, and comes to rest later.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.np.unsafe.ndarray import to_fixed_tuple

from numba_adam.cpu.kernels.compile import inlined, kernel, parallel_kernel
from numba_adam.cpu.kernels.element import adam, amsgrad, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.prefetch import prefetch
from numba_adam.numerics.constants import Constants
from numba_adam.rows.kernels.short_copy import copy

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, GRAD, ZEROS = range(6)  # in `Plan.addresses`; in a scratch, with ZEROS
_COLUMNS = 4  # of these are the table's own
TILE = 1024  # elements
TILE_ROWS = 64
SLOTS = 2
_PITCH = TILE + 80  # elements from one of a scratch's arrays to the next: no power of two, which would share cache sets
SCRATCH = (ZEROS + 1) * _PITCH  # elements

_CONSTANTS = len(Constants._fields)


class Plan(NamedTuple):
    """What is to be done to which rows."""

    addresses: Any  # (5,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none), grad_rows
    rows: Any  # (k,) int64: the distinct rows, ascending
    starts: Any  # (k + 1,) int64: where each one's places begin in `order`; empty: no gradients, a replay alone
    order: Any  # int64: rows of grad_rows
    begins: Any  # (k,) int64: the first step to replay for each row; empty: none for any
    constants: Any  # (steps, 16): `Constants` of each step to replay, then of the update
    first: Any  # int64: the step of the first row of `constants`
    end: Any  # int64: the step before which the replay ends: the update's own
    width: Any  # elements of a row
    rests: Any  # whether all constants leave alone what is at rest


@inlined
def _constants_at(constants, k):  # type: ignore[no-untyped-def]
    return Constants(*to_fixed_tuple(constants[k], _CONSTANTS))


@inlined
def _add(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = target[i] + source[i]


@inlined
def _place(scratch, array, begin, like):  # type: ignore[no-untyped-def]
    """Return where an element of one of the scratch's arrays lies."""
    return scratch + np.uint64(array * _PITCH + begin) * np.uint64(like.itemsize)


@inlined
def _column(scratch, array, begin, size, like):  # type: ignore[no-untyped-def]
    """Return elements of one of the scratch's arrays."""
    return array_at(_place(scratch, array, begin, like), np.uint64(size), like)


@inlined
def _update(scratch, grads, begin, size, has_largest, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of a tile, from `begin` on, with the gradients GRAD or ZEROS."""
    param = _column(scratch, PARAM, begin, size, like)
    grad = _column(scratch, grads, begin, size, like)
    exp_avg = _column(scratch, EXP_AVG, begin, size, like)
    exp_avg_sq = _column(scratch, EXP_AVG_SQ, begin, size, like)
    if has_largest:
        amsgrad(param, grad, exp_avg, exp_avg_sq, _column(scratch, MAX_EXP_AVG_SQ, begin, size, like), c)
    else:
        adam(param, grad, exp_avg, exp_avg_sq, c)


@inlined
def _decay(scratch, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Let the second moments of quiet elements decay: nothing else of them changes."""
    exp_avg_sq = _column(scratch, EXP_AVG_SQ, begin, size, like)
    for i in range(exp_avg_sq.size):
        _, exp_avg_sq[i] = moments(c.zero, c.zero, c.zero, exp_avg_sq[i], c)


@inlined
def _is_quiet(scratch, begin, size, has_largest, like):  # type: ignore[no-untyped-def]
    """Say whether a step without gradient and decay would leave the parameters of these elements alone."""
    exp_avg = _column(scratch, EXP_AVG, begin, size, like)
    exp_avg_sq = _column(scratch, EXP_AVG_SQ, begin, size, like)
    terrain = _column(scratch, MAX_EXP_AVG_SQ if has_largest else EXP_AVG_SQ, begin, size, like)
    for i in range(exp_avg.size):
        if exp_avg[i] != 0 or not terrain[i] >= exp_avg_sq[i] or not exp_avg_sq[i] >= 0:
            return False
    return True


@inlined
def _is_at_rest(scratch, begin, size, like):  # type: ignore[no-untyped-def]
    """Say whether the second moments of quiet elements are zero."""
    exp_avg_sq = _column(scratch, EXP_AVG_SQ, begin, size, like)
    for i in range(exp_avg_sq.size):
        if exp_avg_sq[i] != 0:
            return False
    return True


@inlined
def _step_through(scratch, begins, size, plan, like):  # type: ignore[no-untyped-def]
    """Replay a tile's rows, of `size` elements each, and update them; `begins` are ascending."""
    has_largest, has_grads = plan.addresses[MAX_EXP_AVG_SQ] != 0, plan.starts.size > 0
    resting = quiet = active = 0  # rows: at rest up to the first, then quiet, then in motion, then up to date
    step, grads = begins[0], ZEROS
    while step < plan.end or (has_grads and step == plan.end):
        while active < begins.size and begins[active] <= step:
            active += 1
        if step == plan.end:
            resting, quiet, active, grads = 0, 0, begins.size, GRAD
        c = _constants_at(plan.constants, step - plan.first)
        if quiet > resting:
            _decay(scratch, resting * size, (quiet - resting) * size, c, like)
        _update(scratch, grads, quiet * size, (active - quiet) * size, has_largest, c, like)
        step += 1
        if plan.rests and step <= plan.end:
            while quiet < active and _is_quiet(scratch, quiet * size, size, has_largest, like):
                quiet += 1
            while resting < quiet and _is_at_rest(scratch, resting * size, size, like):
                resting += 1
            if resting == active:
                step = max(step, begins[active] if active < begins.size else plan.end)


@inlined
def _arrange(plan, low, begins, places):  # type: ignore[no-untyped-def]
    """Set `places` to the order in which a tile's rows are replayed, and `begins` to their first steps."""
    for k in range(begins.size):
        begin, place = plan.begins[low + k] if plan.begins.size else plan.end, k
        while place > 0 and begins[place - 1] > begin:
            begins[place], places[place] = begins[place - 1], places[place - 1]
            place -= 1
        begins[place], places[place] = begin, low + k


@inlined
def _offset(row, column, plan, like):  # type: ignore[no-untyped-def]
    """Return how many bytes behind an array's beginning an element lies."""
    return (np.uint64(row) * np.uint64(plan.width) + np.uint64(column)) * np.uint64(like.itemsize)


@inlined
def _fetch(plan, low, high, column, size, like):  # type: ignore[no-untyped-def]
    """Ask for the rows of a tile, and for the first gradient of each."""
    size_bytes = np.uint64(size) * np.uint64(like.itemsize)
    for k in range(low, high):
        skip = _offset(plan.rows[k], column, plan, like)
        for array in range(_COLUMNS):
            if plan.addresses[array]:
                prefetch(plan.addresses[array] + skip, size_bytes)
        if plan.starts.size:
            skip = _offset(plan.order[plan.starts[k]], column, plan, like)
            prefetch(plan.addresses[GRAD] + skip, size_bytes)


@inlined
def _load(scratch, plan, places, column, size, like):  # type: ignore[no-untyped-def]
    """Copy the rows of a tile into the scratch."""
    for k in range(places.size):
        skip = _offset(plan.rows[places[k]], column, plan, like)
        for array in range(_COLUMNS):
            if plan.addresses[array]:
                copy(plan.addresses[array] + skip, _place(scratch, array, k * size, like), size, like)


@inlined
def _load_gradients(scratch, plan, places, column, size, like):  # type: ignore[no-untyped-def]
    """Sum the gradients of each row of a tile, in the order in which they were named, into the scratch."""
    for k in range(places.size):
        begin, end = plan.starts[places[k]], plan.starts[places[k] + 1]
        first = plan.addresses[GRAD] + _offset(plan.order[begin], column, plan, like)
        copy(first, _place(scratch, GRAD, k * size, like), size, like)
        for place in range(begin + 1, end):
            other = plan.addresses[GRAD] + _offset(plan.order[place], column, plan, like)
            _add(array_at(other, np.uint64(size), like), _column(scratch, GRAD, k * size, size, like))


@inlined
def _store(scratch, plan, places, column, size, like):  # type: ignore[no-untyped-def]
    """Copy the rows of a tile back."""
    for k in range(places.size):
        skip = _offset(plan.rows[places[k]], column, plan, like)
        for array in range(_COLUMNS):
            if plan.addresses[array]:
                copy(_place(scratch, array, k * size, like), plan.addresses[array] + skip, size, like)


@inlined
def _tile(plan, low, high, column, size, scratch, slots, like):  # type: ignore[no-untyped-def]
    """Replay and update `size` columns, from `column` on, of the rows from `low` to `high`.

    Args:
        plan: the plan.
        low: index of the first row in `plan.rows`.
        high: index behind the last.
        column: first element of each row.
        size: elements of each row.
        scratch: address of SCRATCH elements.
        slots: (SLOTS, TILE_ROWS) int64: see `_arrange`.
        like: any array of the parameters' dtype.
    """
    begins, places = slots[0, : high - low], slots[1, : high - low]
    _arrange(plan, low, begins, places)
    _load(scratch, plan, places, column, size, like)
    if plan.starts.size:
        _load_gradients(scratch, plan, places, column, size, like)
    _step_through(scratch, begins, size, plan, like)
    _store(scratch, plan, places, column, size, like)


@inlined
def _extent(plan, number, rows, pieces):  # type: ignore[no-untyped-def]
    """Return the first row of a tile, the one behind its last, its first column, and how many columns it has."""
    low, column = number // pieces * rows, number % pieces * TILE
    return low, min(low + rows, plan.rows.size), column, min(TILE, plan.width - column)


@inlined
def _run(plan, task, tasks, scratch, slots):  # type: ignore[no-untyped-def]
    """Do one task's share of the tiles."""
    before = enter_ieee()
    scratch[ZEROS * _PITCH :] = 0
    pieces = (plan.width + TILE - 1) // TILE  # of a row
    rows = max(1, min(TILE_ROWS, TILE // plan.width))  # of a tile
    tiles = (plan.rows.size + rows - 1) // rows * pieces
    share = (tiles + tasks - 1) // tasks
    begin, end = task * share, min(tiles, (task + 1) * share)
    for number in range(begin - 1, end):  # each tile's rows are on their way while the one before is updated
        if number + 1 < end:
            low, high, column, size = _extent(plan, number + 1, rows, pieces)
            _fetch(plan, low, high, column, size, scratch)
        if number >= begin:
            low, high, column, size = _extent(plan, number, rows, pieces)
            _tile(plan, low, high, column, size, np.uint64(scratch.ctypes.data), slots, scratch)
    leave_ieee(before)


@kernel
def update_rows_serial(addresses, rows, starts, order, begins, constants, first, end, width, rests, scratch, slots):
    """Replay and update rows on the calling thread. Arguments: `Plan`, and a scratch and slots for each task."""
    plan = Plan(addresses, rows, starts, order, begins, constants, first, end, width, rests)
    _run(plan, 0, 1, scratch[0], slots[0])


@parallel_kernel
def update_rows_parallel(addresses, rows, starts, order, begins, constants, first, end, width, rests, scratch, slots):
    """Replay and update rows on as many threads as there are scratches. Arguments as for `update_rows_serial`."""
    tasks = len(scratch)
    for task in prange(tasks):
        plan = Plan(addresses, rows, starts, order, begins, constants, first, end, width, rests)
        _run(plan, task, tasks, scratch[task], slots[task])
