"""The update of one array, tile by tile: whatever formats its arrays have, and whatever else a step does to them.

What most steps ask for goes shorter ways, which `tiled` knows; this one leads everywhere.

All that is done to an element is done while it is in the innermost cache, so memory is passed over once. Tiles begin at
multiples of TILE of the array, wherever threads divide it: blocks of elements that share something lie whole in one.
Imports Numba.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined, merged
from numba_adam.cpu.kernels.eight_bit import close_moments, eps_beside_blocks, open_moments
from numba_adam.cpu.kernels.eight_bit_blocks import REST_BYTES, WORK_BYTES, blocks_at, update_blocks, update_rest
from numba_adam.cpu.kernels.element import adam, amsgrad, average, floorless, is_bare
from numba_adam.cpu.kernels.formats import Source, bytes_of, close, native, opened, stream_key
from numba_adam.cpu.kernels.intrinsics import array_at, stream
from numba_adam.cpu.kernels.job import (
    COPY,
    EMA,
    EXP_AVG,
    EXP_AVG_SQ,
    IS_LARGE,
    IS_STOCHASTIC,
    MAX_EXP_AVG_SQ,
    PARAM,
    SCALE,
    SEED,
    ZERO_GRAD,
)
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.numerics.codecs import DITHER_STEP, DITHER_TURN
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import EIGHT_BIT, FLOAT32

_APART = 32  # elements between two rooms, so that their addresses differ in the low bits
ROOM = TILE + _APART
_BLOCKS_ROOM = 5  # behind those for the param, the gradient, and three moments: what blocks in 8 bits need
ROOMS = _BLOCKS_ROOM + -(-(WORK_BYTES + REST_BYTES) // (4 * ROOM))
_BYTES = np.empty(0, np.uint8)
_NONE = Source(np.uint64(0), np.uint64(0), EIGHT_BIT, False, np.uint32(0))


class Work(NamedTuple):
    """What a step does to one parameter."""

    param: Source
    grad: Source
    exp_avg: Source
    exp_avg_sq: Source
    max_exp_avg_sq: Source
    ema: Any  # uint64: address, 0 without one
    copy: Source
    is_large: Any  # whether the step is larger than the caches
    zero_grad: Any  # whether the gradient is set to zero
    rooms: Any  # uint64: where ROOMS * ROOM elements of the computing dtype may be put


@inline
def _source(job, row, step, column):  # type: ignore[no-untyped-def]
    """Return one of the job's arrays."""
    format_, is_stochastic, key = job.formats[row, column], job.options[IS_STOCHASTIC] != 0, np.uint32(0)
    if format_ == EIGHT_BIT:
        first = stream_key(job.options[SEED], 0, job.numbers[row], column)
        key = np.uint32(np.uint64(first) + np.uint64(step) * np.uint64(DITHER_TURN))
    elif is_stochastic:
        key = stream_key(job.options[SEED], step, job.numbers[row], column)
    return Source(job.table[row, column], job.table[row, column + SCALE], format_, is_stochastic, key)


@inline
def work_on(job, row, step, rooms):  # type: ignore[no-untyped-def]
    """Return what a step does to one parameter.

    Args:
        job: the job.
        row: which parameter.
        step: 1 for the first update.
        rooms: uint64: where ROOMS * ROOM elements of the constants' dtype may be put.
    """
    nearest = False, np.uint32(0)
    return Work(
        _source(job, row, step, PARAM),
        Source(job.grads[row], np.uint64(0), job.grad_formats[row], nearest[0], nearest[1]),
        _source(job, row, step, EXP_AVG),
        _source(job, row, step, EXP_AVG_SQ),
        _source(job, row, step, MAX_EXP_AVG_SQ),
        job.table[row, EMA],
        Source(job.table[row, COPY], np.uint64(0), job.formats[row, COPY], nearest[0], nearest[1]),
        job.options[IS_LARGE] != 0,
        job.options[ZERO_GRAD] != 0,
        rooms,
    )


@merged
def update_tiles(work, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on: where a tile begins, or what is left of one.

    Args:
        work: what is done.
        begin: the first element.
        size: how many elements.
        c: the constants.
        like: an array of their dtype.
    """
    for start in range(begin, begin + size, TILE):
        count = min(TILE, begin + size - start)
        _update_tile(work, np.uint64(start), np.uint64(count), c, like)


@merged
def _update_tile(work, begin, size, c, like):  # type: ignore[no-untyped-def]
    room, step = work.rooms, np.uint64(ROOM * like.itemsize)
    param = opened(work.param, begin, size, room, like)
    grad = opened(work.grad, begin, size, room + step, like)
    if native(like) == FLOAT32 and work.exp_avg_sq.format == EIGHT_BIT:
        _update_eight_bit(work, begin, param, grad, c)
    else:
        _update_moments(work, begin, size, param, grad, c, like)
    close(param, work.param, begin, like)
    _finish_tile(work, begin, size, param, c, like)


@merged
def _update_moments(work, begin, size, param, grad, c, like):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are floats."""
    room, step = work.rooms, np.uint64(ROOM * like.itemsize)
    exp_avg = opened(work.exp_avg, begin, size, room + np.uint64(2) * step, like)
    exp_avg_sq = opened(work.exp_avg_sq, begin, size, room + np.uint64(3) * step, like)
    if work.max_exp_avg_sq.address == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        max_exp_avg_sq = opened(work.max_exp_avg_sq, begin, size, room + np.uint64(4) * step, like)
        amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c)
        close(max_exp_avg_sq, work.max_exp_avg_sq, begin, like)
    close(exp_avg, work.exp_avg, begin, like)
    close(exp_avg_sq, work.exp_avg_sq, begin, like)


@merged
def _update_eight_bit(work, begin, param, grad, c):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are in 8 bits."""
    room, step, size = work.rooms, np.uint64(ROOM * param.itemsize), np.uint64(param.size)
    exp_avg = array_at(room + np.uint64(2) * step, size, param)
    exp_avg_sq = array_at(room + np.uint64(3) * step, size, param)
    has_largest = work.max_exp_avg_sq.address != 0
    if is_bare(c) and not has_largest:
        _update_bare(work, begin, param, grad, room + np.uint64(_BLOCKS_ROOM) * step, c)
        return
    open_moments(work.exp_avg, work.exp_avg_sq, begin, exp_avg, exp_avg_sq)
    own = floorless(c, eps_beside_blocks(c.eps, c.one_minus_beta2))
    if has_largest:
        max_exp_avg_sq = array_at(room + np.uint64(4) * step, size, param)
        open_moments(_NONE, work.max_exp_avg_sq, begin, max_exp_avg_sq, max_exp_avg_sq)
        amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, own)
        close_moments(max_exp_avg_sq, max_exp_avg_sq, _NONE, work.max_exp_avg_sq, begin, DITHER_STEP)
    else:
        adam(param, grad, exp_avg, exp_avg_sq, own)
    close_moments(exp_avg, exp_avg_sq, work.exp_avg, work.exp_avg_sq, begin, DITHER_STEP)


@merged
def _update_bare(work, begin, param, grad, room, c):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are in 8 bits, in a step that `is_bare`."""
    places = np.uint64(param.ctypes.data), np.uint64(grad.ctypes.data)
    count = param.size // BLOCK
    if count > 0:
        update_blocks(blocks_at(places[0], places[1], work.exp_avg, work.exp_avg_sq, begin), count, room, c)
    rest = param.size - count * BLOCK
    if rest > 0:
        skip = np.uint64(count * BLOCK)
        bytes_ = skip * np.uint64(param.itemsize)
        last = blocks_at(places[0] + bytes_, places[1] + bytes_, work.exp_avg, work.exp_avg_sq, begin + skip)
        update_rest(last, rest, room, c)


@merged
def _finish_tile(work, begin, size, param, c, like):  # type: ignore[no-untyped-def]
    """Do what is done beside the update, with the new parameters."""
    if work.ema != 0:
        average(array_at(work.ema + begin * np.uint64(like.itemsize), size, like), param, c)
    if work.copy.address != 0:
        if work.param.format == FLOAT32 and native(like) != FLOAT32:
            _as_stored(param)
        _write_copy(work, begin, param, like)
    clear_grad(work, begin, size)


@merged
def clear_grad(work, begin, size):  # type: ignore[no-untyped-def]
    """Set a tile of the gradient to zero, if that is asked for."""
    if work.zero_grad:
        width = bytes_of(work.grad.format)
        _clear(array_at(work.grad.address + begin * width, size * width, _BYTES))


@inlined
def is_streamed(work):  # type: ignore[no-untyped-def]
    """Say whether the copy goes past the caches."""
    return work.is_large and work.copy.address != 0


@merged
def _write_copy(work, begin, param, like):  # type: ignore[no-untyped-def]
    """Write the copy of a tile; in a large step past the caches, which would else read what is overwritten."""
    if is_streamed(work):
        room = work.rooms + np.uint64(2 * ROOM * like.itemsize)
        own = Source(room, np.uint64(0), work.copy.format, False, np.uint32(0))
        close(param, own, np.uint64(0), like)
        width = bytes_of(work.copy.format)
        stream(room, work.copy.address + begin * width, np.uint64(param.size) * width)
    else:
        close(param, work.copy, begin, like)


@inline
def _as_stored(values):  # type: ignore[no-untyped-def]
    """Round values to float32, as a parameter of that dtype holds them: a copy is one of the parameter."""
    for i in range(values.size):
        values[i] = np.float32(values[i])


@inline
def _clear(values):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        values[i] = 0
