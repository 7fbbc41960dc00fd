"""The update over a table of arrays: one launch, however many arrays there are and wherever they lie. Imports Numba.

The job's table has a row for each array: where its param, exp_avg, exp_avg_sq and max_exp_avg_sq lie. Its plan says
which arrays have a gradient, and where. An element's new value depends on nothing but that element: neither the cuts
between threads nor their number can change a bit.

These kernels take arrays that all have the dtype in which is computed, and do nothing beside the update; `tiled` does
all the rest.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from numba_adam.cpu.kernels import ranges
from numba_adam.cpu.kernels.compile import bind, kernel, merged, parallel_kernel
from numba_adam.cpu.kernels.element import adam, adam_bare, amsgrad, is_bare
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.job import EXP_AVG, EXP_AVG_SQ, IS_LARGE, MAX_EXP_AVG_SQ, PARAM, unpack
from numba_adam.cpu.kernels.prefetch import stretches
from numba_adam.cpu.kernels.ranges import count_steps, cut


@merged
def _update_part(job, row, step, begin, size, c):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    like, places = job.constants, job.table[row]
    skip, count = np.uint64(begin) * np.uint64(like.itemsize), np.uint64(size)
    param = array_at(places[PARAM] + skip, count, like)
    grad = array_at(job.grads[row] + skip, count, like)
    exp_avg = array_at(places[EXP_AVG] + skip, count, like)
    exp_avg_sq = array_at(places[EXP_AVG_SQ] + skip, count, like)
    if places[MAX_EXP_AVG_SQ] == 0 and is_bare(c):
        adam_bare(param, grad, exp_avg, exp_avg_sq, None, None, stretches(size) if job.options[IS_LARGE] else 0, c)
    elif places[MAX_EXP_AVG_SQ] == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        amsgrad(param, grad, exp_avg, exp_avg_sq, array_at(places[MAX_EXP_AVG_SQ] + skip, count, like), c)


_update_range = merged(bind(ranges.update_range, update_part=_update_part))


@kernel
def update_serial(places, like, steps, count):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on the calling thread.

    Args:
        places: from `job.pack`.
        like: any array of the dtype in which is computed.
        steps: (n,) int64: updates made so far; counted up.
        count: how many arrays the plan holds.
    """
    job = unpack(places, like)
    _update_range(job, count, steps, 0, job.offsets[count])
    count_steps(job, count, steps)


@parallel_kernel
def update_parallel(places, like, steps, count, tasks):  # type: ignore[no-untyped-def]
    """Update the arrays of a plan on `tasks` threads. Arguments as for `update_serial`."""
    for task in prange(tasks):
        job = unpack(places, like)
        _update_range(job, count, steps, cut(job, count, task, tasks), cut(job, count, task + 1, tasks))
    count_steps(unpack(places, like), count, steps)
