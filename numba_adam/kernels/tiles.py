"""The update of one array, tile by tile: whatever formats its arrays have, and whatever else a step does to them.

All that is done to an element is done while it is in the innermost cache, so memory is passed over once. Tiles begin at
multiples of TILE of the array, wherever threads divide it: blocks of elements that share something lie whole in one.
Imports Numba.
"""

from __future__ import annotations

import numpy as np

from numba_adam.kernels.compile import inline
from numba_adam.kernels.element import adam, amsgrad, average
from numba_adam.kernels.formats import bytes_of, close, opened, stream_key
from numba_adam.kernels.intrinsics import array_at
from numba_adam.kernels.job import (
    COPY,
    EMA,
    EXP_AVG,
    EXP_AVG_SQ,
    IS_STOCHASTIC,
    MAX_EXP_AVG_SQ,
    PARAM,
    SCALE,
    SEED,
    ZERO_GRAD,
)

TILE = 1024  # elements
ROOMS = 5  # for the param, three moments and the gradient, in the order of the columns
_GRAD = 4  # the gradient's room
_APART = 32  # elements between two rooms, so that their addresses differ in the low bits
ROOM = TILE + _APART
_BYTES = np.empty(0, np.uint8)


@inline
def update_tiles(job, row, step, begin, size, c, rooms):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on, a multiple of TILE.

    Args:
        job: the job.
        row: which array.
        step: 1 for the first update.
        begin: the first element.
        size: how many elements.
        c: the constants.
        rooms: uint64: where ROOMS * ROOM elements of the constants' dtype may be put.
    """
    for start in range(begin, begin + size, TILE):
        count = min(TILE, begin + size - start)
        _update_tile(job, row, step, np.uint64(start), np.uint64(count), c, rooms)


@inline
def _update_tile(job, row, step, begin, size, c, rooms):  # type: ignore[no-untyped-def]
    like = job.constants
    grad = opened(job.grads[row], np.uint64(0), job.grad_formats[row], begin, size, _room(rooms, _GRAD, like), like)
    param = _open(job, row, PARAM, begin, size, rooms)
    exp_avg = _open(job, row, EXP_AVG, begin, size, rooms)
    exp_avg_sq = _open(job, row, EXP_AVG_SQ, begin, size, rooms)
    if job.table[row, MAX_EXP_AVG_SQ] == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        max_exp_avg_sq = _open(job, row, MAX_EXP_AVG_SQ, begin, size, rooms)
        amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c)
        _close(job, row, step, MAX_EXP_AVG_SQ, begin, max_exp_avg_sq)
    _close(job, row, step, EXP_AVG, begin, exp_avg)
    _close(job, row, step, EXP_AVG_SQ, begin, exp_avg_sq)
    _close(job, row, step, PARAM, begin, param)
    if job.table[row, EMA] != 0:
        average(array_at(job.table[row, EMA] + begin * np.uint64(like.itemsize), size, like), param, c)
    if job.table[row, COPY] != 0:
        to_nearest = False, np.uint32(0)
        close(param, job.table[row, COPY], np.uint64(0), job.formats[row, COPY], begin, to_nearest, like)
    if job.options[ZERO_GRAD]:
        width = bytes_of(job.grad_formats[row])
        array_at(job.grads[row] + begin * width, size * width, _BYTES)[:] = 0


@inline
def _room(rooms, number, like):  # type: ignore[no-untyped-def]
    return rooms + np.uint64(number * ROOM * like.itemsize)


@inline
def _open(job, row, column, begin, size, rooms):  # type: ignore[no-untyped-def]
    """Return a tile of one of the job's arrays, in the dtype of the constants."""
    room = _room(rooms, column, job.constants)
    scales = job.table[row, column + SCALE]
    return opened(job.table[row, column], scales, job.formats[row, column], begin, size, room, job.constants)


@inline
def _close(job, row, step, column, begin, values):  # type: ignore[no-untyped-def]
    """Put a tile back into one of the job's arrays."""
    rounding = False, np.uint32(0)
    if job.options[IS_STOCHASTIC]:
        rounding = True, stream_key(job.options[SEED], step, job.numbers[row], column)
    scales = job.table[row, column + SCALE]
    close(values, job.table[row, column], scales, job.formats[row, column], begin, rounding, job.constants)
