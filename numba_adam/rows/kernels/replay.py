"""The update of rows of a table, each after a replay of the steps that it missed. Imports Numba.

Rows are updated tile by tile: up to 64 rows (or a piece of one wide row) are copied into a scratch buffer that stays in
the innermost cache, updated there as one range of elements, and copied back, while the next tile is prefetched. So
narrow rows run as vector code too. The rows of a tile are ordered by the first step that they missed, so at any step
the rows to be replayed are neighbours. Rows without missed steps need none of this: see `in_place`.

A replay skips only work that changes no bit: an element whose first moment is zero keeps its parameter if there is
neither gradient nor decay, and an element whose moments are both zero keeps everything. Some steps after its last
gradient a row is *quiet* (its parameters stay), and later *at rest* (everything stays).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import array_inlined, inlined, kernel
from numba_adam.cpu.kernels.constants import CONSTANTS, constants_of
from numba_adam.cpu.kernels.element import adam, amsgrad, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.prefetch import prefetch
from numba_adam.rows.kernels.short_copy import copy

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, GRAD, ZEROS = range(6)  # in `Plan.addresses`; with ZEROS in scratch
_COLUMNS = 4  # of these belong to the table
TILE = 1024  # elements
TILE_ROWS = 64
SLOTS = 2
_PITCH = TILE + 80  # elements from one scratch array to the next: powers of two would share cache sets
SCRATCH = (ZEROS + 1) * _PITCH  # elements
_UINT64, _INT64 = np.empty(0, np.uint64), np.empty(0, np.int64)


class Plan(NamedTuple):
    """The rows that a launch replays and updates."""

    addresses: Any  # (5,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none), grad_rows
    rows: Any  # (k,) int64: the distinct rows, ascending
    starts: Any  # (k + 1,) int64: where the gradients of each row begin in `order`; empty: a replay without an update
    order: Any  # int64: rows of grad_rows
    begins: Any  # (k,) int64: the first step to replay for each row; empty: no row replays a step
    constants: Any  # (steps, CONSTANTS): `Constants` of each step to replay, then of the update
    first: Any  # int64: the step of the first row of `constants`
    end: Any  # int64: the step before which the replay ends: that of the update
    width: Any  # elements of a row
    rests: Any  # whether all steps leave unchanged what is at rest


@inlined
def _add(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = target[i] + source[i]


@inlined
def _address(scratch, array, begin, like):  # type: ignore[no-untyped-def]
    """Return the address of an element of a scratch array."""
    return scratch + np.uint64(array * _PITCH + begin) * np.uint64(like.itemsize)


@array_inlined
def _column(scratch, array, begin, size, like):  # type: ignore[no-untyped-def]
    """Return elements of a scratch array."""
    return array_at(_address(scratch, array, begin, like), np.uint64(size), like)


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
    """Decay the second moments of quiet elements; nothing else of them changes."""
    exp_avg_sq = _column(scratch, EXP_AVG_SQ, begin, size, like)
    for i in range(exp_avg_sq.size):
        _, exp_avg_sq[i] = moments(c.zero, c.zero, c.zero, exp_avg_sq[i], c)


@inlined
def _is_quiet(scratch, begin, size, has_largest, like):  # type: ignore[no-untyped-def]
    """Say whether a step without gradient and decay leaves the parameters of these elements unchanged."""
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
    """Replay and update the rows of a tile, of `size` elements each; `begins` ascend."""
    has_largest, has_grads = plan.addresses[MAX_EXP_AVG_SQ] != 0, plan.starts.size > 0
    # Rows up to `resting` are at rest, up to `quiet` quiet, up to `active` active; the others are current.
    resting = quiet = active = 0
    step, grads = begins[0], ZEROS
    while step < plan.end or (has_grads and step == plan.end):
        while active < begins.size and begins[active] <= step:
            active += 1
        if step == plan.end:
            resting, quiet, active, grads = 0, 0, begins.size, GRAD
        c = constants_of(plan.constants[step - plan.first])
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
def _sort(plan, low, begins, which):  # type: ignore[no-untyped-def]
    """Set `which` to the rows of a tile in the order of their first steps, and `begins` to these steps."""
    for k in range(begins.size):
        begin, j = plan.begins[low + k] if plan.begins.size else plan.end, k
        while j > 0 and begins[j - 1] > begin:
            begins[j], which[j] = begins[j - 1], which[j - 1]
            j -= 1
        begins[j], which[j] = begin, low + k


@inlined
def _offset(row, column, plan, like):  # type: ignore[no-untyped-def]
    """Return the offset of an element in its array, in bytes."""
    return (np.uint64(row) * np.uint64(plan.width) + np.uint64(column)) * np.uint64(like.itemsize)


@inlined
def _prefetch(plan, low, high, column, size, like):  # type: ignore[no-untyped-def]
    """Prefetch the rows of a tile, and the first gradient of each."""
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
def _load(scratch, plan, which, column, size, like):  # type: ignore[no-untyped-def]
    """Copy the rows of a tile into the scratch buffer."""
    for k in range(which.size):
        skip = _offset(plan.rows[which[k]], column, plan, like)
        for array in range(_COLUMNS):
            if plan.addresses[array]:
                copy(plan.addresses[array] + skip, _address(scratch, array, k * size, like), size, like)


@inlined
def _load_gradients(scratch, plan, which, column, size, like):  # type: ignore[no-untyped-def]
    """Sum the gradients of each row of a tile, in their order, into the scratch buffer."""
    for k in range(which.size):
        begin, end = plan.starts[which[k]], plan.starts[which[k] + 1]
        first = plan.addresses[GRAD] + _offset(plan.order[begin], column, plan, like)
        copy(first, _address(scratch, GRAD, k * size, like), size, like)
        for index in range(begin + 1, end):
            other = plan.addresses[GRAD] + _offset(plan.order[index], column, plan, like)
            _add(array_at(other, np.uint64(size), like), _column(scratch, GRAD, k * size, size, like))


@inlined
def _store(scratch, plan, which, column, size, like):  # type: ignore[no-untyped-def]
    """Copy the rows of a tile back."""
    for k in range(which.size):
        skip = _offset(plan.rows[which[k]], column, plan, like)
        for array in range(_COLUMNS):
            if plan.addresses[array]:
                copy(_address(scratch, array, k * size, like), plan.addresses[array] + skip, size, like)


@inlined
def _tile(plan, low, high, column, size, scratch, slots, like):  # type: ignore[no-untyped-def]
    """Replay and update `size` columns, from `column` on, of the rows from `low` to `high`.

    Args:
        plan: the plan.
        low: index of the first row in `plan.rows`.
        high: index after the last.
        column: the first element of each row.
        size: the number of elements of each row.
        scratch: address of SCRATCH elements.
        slots: (SLOTS, TILE_ROWS) int64: `begins` and `which` of `_sort`.
        like: any array of the parameters' dtype.
    """
    begins, which = slots[0, : high - low], slots[1, : high - low]
    _sort(plan, low, begins, which)
    _load(scratch, plan, which, column, size, like)
    if plan.starts.size:
        _load_gradients(scratch, plan, which, column, size, like)
    _step_through(scratch, begins, size, plan, like)
    _store(scratch, plan, which, column, size, like)


@inlined
def _extent(plan, number, rows, pieces):  # type: ignore[no-untyped-def]
    """Return the first row of a tile, the one after its last, its first column, and the number of its columns."""
    low, column = number // pieces * rows, number % pieces * TILE
    return low, min(low + rows, plan.rows.size), column, min(TILE, plan.width - column)


@inlined
def _run(plan, task, tasks, scratch, slots):  # type: ignore[no-untyped-def]
    """Update one task's share of the tiles."""
    environment = enter_ieee()
    scratch[ZEROS * _PITCH :] = 0
    pieces = (plan.width + TILE - 1) // TILE  # of a row
    rows = max(1, min(TILE_ROWS, TILE // plan.width))  # of a tile
    tiles = (plan.rows.size + rows - 1) // rows * pieces
    share = (tiles + tasks - 1) // tasks
    begin, end = task * share, min(tiles, (task + 1) * share)
    for number in range(begin - 1, end):  # prefetch the rows of each tile while the previous one is updated
        if number + 1 < end:
            low, high, column, size = _extent(plan, number + 1, rows, pieces)
            _prefetch(plan, low, high, column, size, scratch)
        if number >= begin:
            low, high, column, size = _extent(plan, number, rows, pieces)
            _tile(plan, low, high, column, size, np.uint64(scratch.ctypes.data), slots, scratch)
    leave_ieee(environment)


@kernel
def update_rows(packed, like, numbers, count, task, tasks):  # type: ignore[no-untyped-def]
    """Replay and update one share of the rows. See `threads.launch` for the arguments.

    Args:
        packed: address and length of the first six arrays of `Plan`, then of `slots` and `scratch`, of each task.
        like: any array of the parameters' dtype.
        numbers: int64: first, end, width and rests of `Plan`.
        count: number of entries in `packed`.
        task: which share.
        tasks: number of shares.
    """
    if task == tasks:
        return
    plan = Plan(
        array_at(packed[0, 0], packed[0, 1], _UINT64),
        array_at(packed[1, 0], packed[1, 1], _INT64),
        array_at(packed[2, 0], packed[2, 1], _INT64),
        array_at(packed[3, 0], packed[3, 1], _INT64),
        array_at(packed[4, 0], packed[4, 1], _INT64),
        array_at(packed[5, 0], (packed[5, 1], np.uint64(CONSTANTS)), like),
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3] != 0,
    )
    own = np.uint64(task) * np.uint64(SLOTS * TILE_ROWS * 8)
    slots = array_at(packed[6, 0] + own, (np.uint64(SLOTS), np.uint64(TILE_ROWS)), _INT64)
    own = np.uint64(task) * np.uint64(SCRATCH * plan.constants.itemsize)
    _run(plan, task, tasks, array_at(packed[7, 0] + own, np.uint64(SCRATCH), like), slots)
