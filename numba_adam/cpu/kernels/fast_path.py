"""What `adam_update` needs beside the elements, in one compiled call: one parameter's checks, and the plan of its step.

Imports Numba.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.formats import native
from numba_adam.cpu.kernels.gather import (
    ALIGNED,
    C_ORDER,
    FORTRAN_ORDER,
    WRITEABLE,
    data_at,
    flags_at,
    kind_of,
    same,
    shape_at,
)
from numba_adam.cpu.kernels.job import unpack
from numba_adam.cpu.kernels.prepare import plan_step

_GRAD = 0  # the gradient comes first; it may be read-only


@inline
def _are_alike(objects, kinds, format_):  # type: ignore[no-untyped-def]
    """Say whether the objects are plain arrays of a format, a shape and an order, writable but for the gradient."""
    order = np.uint64(C_ORDER | FORTRAN_ORDER)
    for k in range(objects.size):
        if kind_of(objects[k], kinds, ALIGNED if k == _GRAD else ALIGNED | WRITEABLE) != format_:
            return False
        order &= flags_at(objects[k], objects)
        if not same(shape_at(objects[k], objects), shape_at(objects[0], objects)):
            return False
    return order != np.uint64(0)


@inline
def _are_apart(objects, size):  # type: ignore[no-untyped-def]
    """Say whether no two of the objects, all of one size in bytes, share memory."""
    for k in range(objects.size):
        for other in range(k):
            one, two = data_at(objects[k], objects), data_at(objects[other], objects)
            if one < two + size and two < one + size:
                return False
    return True


@kernel
def prepare_one(places, like, objects, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Check one parameter's arrays and plan its step; False if one of them does not fit.

    Args:
        places: from `job.pack`: a job of one parameter with its `kinds` and `settings`; the rest is filled.
        like: any array of the parameter's dtype.
        objects: uint64: where the array objects lie: grad, then param, exp_avg, exp_avg_sq and perhaps max_exp_avg_sq.
        steps: (1,) int64: updates made so far.
        grad_scale: float64: multiplies the gradient.
    """
    job = unpack(places, like)
    if not _are_alike(objects, job.kinds, native(like)):
        return False
    length = 1
    for extent in shape_at(objects[0], objects):
        length *= extent
    if not _are_apart(objects, np.uint64(length * like.itemsize)):
        return False
    job.table[0] = 0
    for k in range(1, objects.size):
        job.table[0, k - 1] = data_at(objects[k], objects)
    job.grads[0], job.grad_formats[0] = data_at(objects[_GRAD], objects), native(like)
    job.lengths[0] = length
    plan_step(job, steps, grad_scale, 0.0)
    return True
