"""What rows have missed, and the constants of every step that is made up for. Imports Numba.

A row has missed the steps behind the one that it was last brought up to. What hyperparameters held at a step stands in
a history: from its first step on, each entry holds until the next begins.
"""

from __future__ import annotations

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from numba_adam.cpu.kernels.compile import bind, inline, kernel
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.constants import Settings, bias_correction, correct
from numba_adam.numerics.operations import product
from numba_adam.rows.kernels.replay import EXP_AVG, EXP_AVG_SQ

_SETTINGS = len(Settings._fields)
_WORTH_A_LOOK = 32  # steps missed from which it pays to look whether the row is at rest

_bias_correction = inline(bind(bias_correction, product=inline(product)))
_correct = inline(correct)


@inline
def _is_zero(address, count, like):  # type: ignore[no-untyped-def]
    """Say whether an array of `like`'s dtype holds nothing but zeros."""
    array = array_at(address, np.uint64(count), like)
    for i in range(array.size):
        if array[i] != 0:
            return False
    return True


@kernel
def first_ahead(rows, last_step, limit):  # type: ignore[no-untyped-def]
    """Return the index of the first of the rows whose last step is not from 0 to before `limit`; else -1.

    Args:
        rows: (k,) int64: rows of the table.
        last_step: (n,) int64: the step that each row of the table was last brought up to.
        limit: what the last steps must be smaller than.
    """
    for k in range(rows.size):
        if not 0 <= last_step[rows[k]] < limit:
            return k
    return -1


@kernel
def find_missed(addresses, rows, last_step, end, width, rests, like, begins):  # type: ignore[no-untyped-def]
    """Find the step from which each row is to be replayed, and return the first of all.

    A row whose moments are zero is at rest: where hyperparameters let it rest, one step is as good as all of them.

    Args:
        addresses: (6,) uint64: param, exp_avg, exp_avg_sq, max_exp_avg_sq, grad_rows.
        rows: (k,) int64: rows of the table.
        last_step: (n,) int64: the step that each row of the table was last brought up to.
        end: the step before which the replay ends.
        width: elements of a row.
        rests: whether the hyperparameters of every step leave alone what is at rest.
        like: any array of the parameters' dtype.
        begins: (k,) int64, filled.
    """
    first, row_bytes = end, np.uint64(width) * np.uint64(like.itemsize)
    for k in range(rows.size):
        begin = last_step[rows[k]] + 1
        if rests and end - begin >= _WORTH_A_LOOK:
            skip = np.uint64(rows[k]) * row_bytes
            if _is_zero(addresses[EXP_AVG] + skip, width, like) and _is_zero(addresses[EXP_AVG_SQ] + skip, width, like):
                begin = end - 1
        begins[k] = begin
        first = min(first, begin)
    return first


@kernel
def write_constants(first_steps, settings, first, grad_scale, constants):  # type: ignore[no-untyped-def]
    """Write the constants of consecutive steps, rounded to the arrays' dtype.

    Args:
        first_steps: (e,) int64, ascending: the step from which each entry of the history holds; none is behind `first`.
        settings: (e, 11) float64: `Settings` of each.
        first: the first of the steps.
        grad_scale: float64: multiplies every gradient.
        constants: (steps, 16) of the arrays' dtype, filled: `Constants` of each step.
    """
    before = enter_ieee()
    entry = count_below(first_steps, first + 1) - 1
    for k in range(len(constants)):
        step = first + k
        while entry + 1 < first_steps.size and first_steps[entry + 1] <= step:
            entry += 1
        s = Settings(*to_fixed_tuple(settings[entry], _SETTINGS))
        corrections = _bias_correction(s.beta1, step), _bias_correction(s.beta2, step)
        row = 0
        for value in _correct(s, corrections[0], corrections[1], grad_scale, 0.0):
            constants[k, row] = value
            row += 1
    leave_ieee(before)
