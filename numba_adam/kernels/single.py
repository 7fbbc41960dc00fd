"""What `adam_update` needs beside the elements, in one compiled call: the table and the plan of one parameter's step.

Imports Numba.
"""

from __future__ import annotations

import numpy as np

from numba_adam.kernels.compile import inline, kernel
from numba_adam.kernels.gather import NEEDED, WRITEABLE, data_at, is_plain, same, shape_at
from numba_adam.kernels.prepare import plan_step

_GRAD = 0  # the gradient comes first; it may be read-only


@inline
def _are_alike(objects, kinds):  # type: ignore[no-untyped-def]
    """Say whether the objects are plain arrays of one shape, writable but for the gradient."""
    for k in range(objects.size):
        if not is_plain(objects[k], kinds, NEEDED if k == _GRAD else NEEDED | WRITEABLE):
            return False
        if not same(shape_at(objects[k], objects), shape_at(objects[0], objects)):
            return False
    return True


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
def prepare_one(objects, kinds, table, plan, settings, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Check one parameter's arrays and plan its step; False if one of them does not fit.

    Args:
        objects: uint64: where the array objects lie: grad, then param, exp_avg, exp_avg_sq and perhaps max_exp_avg_sq.
        kinds: from `gather.kinds`.
        table: (1, update.COLUMNS) uint64, zeros: the table to fill.
        plan: the plan to fill.
        settings: (1, 10) float64: a `folding.Settings`.
        steps: (1,) int64: updates made so far.
        grad_scale: float64: multiplies the gradient.
    """
    if not _are_alike(objects, kinds):
        return False
    length = 1
    for extent in shape_at(objects[0], objects):
        length *= extent
    if not _are_apart(objects, np.uint64(length * plan.constants.itemsize)):
        return False
    for k in range(1, objects.size):
        table[0, k - 1] = data_at(objects[k], objects)
    plan.grads[0] = data_at(objects[_GRAD], objects)
    lengths = np.full(1, length)
    plan_step(plan, lengths, np.zeros_like(lengths), settings, steps, grad_scale)
    return True
