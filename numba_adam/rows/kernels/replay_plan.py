"""The steps that rows missed, and the constants of these steps. Imports Numba.

A row missed the steps after the one that it was last brought up to. The hyperparameters of each step are in a history:
each entry is valid from its first step on, until the next entry begins.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.constants import write_constants
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.search import count_below
from numba_adam.rows.kernels.replay import EXP_AVG, EXP_AVG_SQ

_WORTH_A_TEST = 32  # missed steps from which on it is faster to test whether the row is at rest


@inline
def _is_zero(address, count, like):  # type: ignore[no-untyped-def]
    """Say whether all elements of an array of `like`'s dtype are zero."""
    array = array_at(address, np.uint64(count), like)
    for i in range(array.size):
        if array[i] != 0:
            return False
    return True


@kernel
def first_out_of_range(rows, last_step, limit):  # type: ignore[no-untyped-def]
    """Return the index of the first row whose last step is not in [0, limit); -1 if there is none.

    Args:
        rows: (k,) int64: rows of the table.
        last_step: (n,) int64: the step that each row of the table was last brought up to.
        limit: the last steps must be smaller.
    """
    for k in range(rows.size):
        if not 0 <= last_step[rows[k]] < limit:
            return k
    return -1


@kernel
def find_missed(addresses, rows, last_step, end, width, rests, like, begins):  # type: ignore[no-untyped-def]
    """Find the first step to replay for each row, and return the smallest of them.

    A row whose moments are zero is at rest. If the hyperparameters leave it unchanged, one step has the effect of all.

    Args:
        addresses: (6,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq, grad_rows.
        rows: (k,) int64: rows of the table.
        last_step: (n,) int64: the step that each row of the table was last brought up to.
        end: the step before which the replay ends.
        width: elements of a row.
        rests: whether the hyperparameters of every step leave unchanged what is at rest.
        like: any array of the parameters' dtype.
        begins: (k,) int64, filled.
    """
    first, row_bytes = end, np.uint64(width) * np.uint64(like.itemsize)
    for k in range(rows.size):
        begin = last_step[rows[k]] + 1
        if rests and end - begin >= _WORTH_A_TEST:
            skip = np.uint64(rows[k]) * row_bytes
            if _is_zero(addresses[EXP_AVG] + skip, width, like) and _is_zero(addresses[EXP_AVG_SQ] + skip, width, like):
                begin = end - 1
        begins[k] = begin
        first = min(first, begin)
    return first


@kernel
def write_steps(first_steps, settings, first, grad_scale, constants):  # type: ignore[no-untyped-def]
    """Write the constants of consecutive steps, rounded to the dtype of the table.

    Args:
        first_steps: (e,) int64, ascending: the first step of each entry of the history; the first is at most `first`.
        settings: (e, SETTINGS) float64: `Settings` of each entry.
        first: the first of the steps.
        grad_scale: float64: multiplies every gradient.
        constants: (steps, CONSTANTS) of the table's dtype, filled.
    """
    environment = enter_ieee()
    entry = count_below(first_steps, first_steps.size, first + 1) - 1
    for k in range(len(constants)):
        step = first + k
        while entry + 1 < first_steps.size and first_steps[entry + 1] <= step:
            entry += 1
        write_constants(constants[k], settings[entry], step, grad_scale, 0.0)
    leave_ieee(environment)
