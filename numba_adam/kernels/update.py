"""The update over a table of arrays: one launch, however many arrays there are and wherever they lie. Imports Numba.

The job's table has a row for each array: where its param, exp_avg, exp_avg_sq and max_exp_avg_sq lie. Its plan says
which arrays have a gradient, and where. Their elements together are one range, which is cut into one piece for each
thread, whatever the arrays' sizes. An element's new value depends on nothing but that element and the block it shares
a scale with, and no block is cut: neither the cuts nor the number of threads can change a bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.folding import Constants
from numba_adam.kernels.compile import inline, kernel, parallel_kernel
from numba_adam.kernels.element import adam, amsgrad
from numba_adam.kernels.formats import native
from numba_adam.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.kernels.job import EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, PARAM, ZERO_GRAD, unpack
from numba_adam.kernels.search import count_below
from numba_adam.kernels.tiles import ROOM, ROOMS, TILE, update_tiles


@inline
def _constants(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by their names."""
    return Constants(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
        row[13],
        row[14],
    )


@inline
def _update_plain(row, grad_address, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on, whose arrays all have `like`'s dtype."""
    skip = np.uint64(begin) * np.uint64(like.itemsize)
    count = np.uint64(size)
    param = array_at(row[PARAM] + skip, count, like)
    grad = array_at(grad_address + skip, count, like)
    exp_avg = array_at(row[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(row[EXP_AVG_SQ] + skip, count, like)
    if row[MAX_EXP_AVG_SQ] == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(row[MAX_EXP_AVG_SQ] + skip, count, like), c)


@inline
def _is_plain(job, row):  # type: ignore[no-untyped-def]
    """Say whether one loop over an array's elements is all that is to be done."""
    return job.plain[row] and job.grad_formats[row] == native(job.constants) and not job.options[ZERO_GRAD]


@inline
def _update_range(job, count, steps, begin, end):  # type: ignore[no-untyped-def]
    """Update the elements from `begin` to `end`, counted over all arrays of the plan."""
    before = enter_ieee()
    rooms = np.empty(ROOMS * ROOM, job.constants.dtype)
    offsets = job.offsets[: count + 1]
    k = count_below(offsets, begin + 1) - 1  # the last array that begins here or before
    while begin < end:
        stop = min(end, offsets[k + 1])
        row = job.rows[k]
        c = _constants(job.constants[job.which[k]])
        if _is_plain(job, row):
            _update_plain(job.table[row], job.grads[row], begin - offsets[k], stop - begin, c, job.constants)
        else:
            place = np.uint64(rooms.ctypes.data)
            update_tiles(job, row, steps[row] + 1, begin - offsets[k], stop - begin, c, place)
        begin = stop
        k += 1
    leave_ieee(before)


@inline
def _cut(job, count, position):  # type: ignore[no-untyped-def]
    """Return where threads meet, near a position counted over all arrays: at the beginning of a tile of its array."""
    offsets = job.offsets[: count + 1]
    if position >= offsets[count]:
        return offsets[count]
    first = offsets[count_below(offsets, position + 1) - 1]
    return first + (position - first) // TILE * TILE


@inline
def _count_steps(job, count, steps):  # type: ignore[no-untyped-def]
    """Count the update in the step of every array of the plan."""
    for k in range(count):
        steps[job.rows[k]] += 1


@kernel
def update_serial(places, like, steps, count):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on the calling thread.

    Args:
        places: from `job.pack`.
        like: any array of the parameters' dtype.
        steps: (n,) int64: updates made so far; counted up.
        count: how many arrays the plan holds.
    """
    job = unpack(places, like)
    _update_range(job, count, steps, 0, job.offsets[count])
    _count_steps(job, count, steps)


@parallel_kernel
def update_parallel(places, like, steps, count, tasks):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on `tasks` threads. Arguments as for `update_serial`."""
    share = unpack(places, like).offsets[count] // tasks + 1
    for task in prange(tasks):
        job = unpack(places, like)
        begin, end = _cut(job, count, task * share), _cut(job, count, (task + 1) * share)
        _update_range(job, count, steps, begin, end)
    _count_steps(unpack(places, like), count, steps)
