"""The plan of a step of one parameter, in one compiled call: validation, addresses, constants. Imports Numba."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.formats import compute_format
from numba_adam.cpu.kernels.gather import (
    ALIGNED,
    C_ORDER,
    FORTRAN_ORDER,
    WRITEABLE,
    data_at,
    flags_at,
    format_at,
    same,
    shape_at,
)
from numba_adam.cpu.kernels.launch_plan import unpack
from numba_adam.cpu.kernels.prepare import plan_step

_GRAD = 0  # the gradient comes first; it may be read-only


@inline
def _are_alike(objects, kinds, format_):  # type: ignore[no-untyped-def]
    """Say whether all objects are plain arrays of one format, shape and order; all but the gradient writable."""
    order = np.uint64(C_ORDER | FORTRAN_ORDER)
    for k in range(objects.size):
        if format_at(objects[k], kinds, ALIGNED if k == _GRAD else ALIGNED | WRITEABLE) != format_:
            return False
        order &= flags_at(objects[k], objects)
        if not same(shape_at(objects[k], objects), shape_at(objects[0], objects)):
            return False
    return order != np.uint64(0)


@inline
def _are_apart(objects, size):  # type: ignore[no-untyped-def]
    """Say whether no two of the arrays share memory; `size` is the number of bytes of each."""
    for k in range(objects.size):
        for other in range(k):
            one, two = data_at(objects[k], objects), data_at(objects[other], objects)
            if one < two + size and two < one + size:
                return False
    return True


@kernel
def prepare_one(packed, like, objects, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Validate one parameter's arrays and plan its step; return False if an array does not fit.

    Args:
        packed: from `launch_plan.pack`: a plan of one parameter with its `kinds` and `settings`; the rest is filled.
        like: any array of the parameter's dtype.
        objects: uint64: addresses of the array objects: grad, param, exp_avg, exp_avg_sq and perhaps max_exp_avg_sq.
        steps: (1,) int64: updates made so far.
        grad_scale: float64: multiplies the gradient.
    """
    plan = unpack(packed, like)
    if not _are_alike(objects, plan.kinds, compute_format(like)):
        return False
    length = 1
    for extent in shape_at(objects[0], objects):
        length *= extent
    if not _are_apart(objects, np.uint64(length * like.itemsize)):
        return False
    plan.addresses[0] = 0
    for k in range(1, objects.size):
        plan.addresses[0, k - 1] = data_at(objects[k], objects)
    plan.grads[0], plan.grad_formats[0] = data_at(objects[_GRAD], objects), compute_format(like)
    plan.lengths[0] = length
    plan_step(plan, steps, grad_scale, 0.0)
    return True
