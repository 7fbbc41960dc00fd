"""What a step needs beside the elements, for all arrays in one compiled call: addresses, checks, constants.

Nothing is written but the plan, so a step that is refused has changed nothing. Imports Numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numba_adam import folding
from numba_adam.folding import Settings
from numba_adam.kernels.compile import inline, kernel
from numba_adam.kernels.gather import gather
from numba_adam.kernels.intrinsics import enter_ieee, leave_ieee

_bias_correction = inline(folding.bias_correction)
_correct = inline(folding.correct)


class Plan(NamedTuple):
    """One step over the arrays that have a gradient: the first `count` entries, `prepare` says how many."""

    grads: np.ndarray  # type: ignore[type-arg]  # (n,) uint64: where each array's gradient lies, 0 without one
    rows: np.ndarray  # type: ignore[type-arg]  # (n,) int64: which arrays have one
    offsets: np.ndarray  # type: ignore[type-arg]  # (n + 1,) int64: where each begins when all elements are counted through
    which: np.ndarray  # type: ignore[type-arg]  # (n,) int64: the row of `constants` for each
    constants: np.ndarray  # type: ignore[type-arg]  # (n, 12) of the arrays' dtype: `folding.Constants`


@inline
def _settings(row):  # type: ignore[no-untyped-def]
    """Return a row of settings by their names."""
    return Settings(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9])


@inline
def _write_constants(row, settings, step, grad_scale):  # type: ignore[no-untyped-def]
    """Write the constants of a step into a row, rounded to its dtype."""
    s = _settings(settings)
    constants = _correct(s, _bias_correction(s.beta1, step), _bias_correction(s.beta2, step), grad_scale)
    k = 0
    for value in constants:
        row[k] = value
        k += 1


@inline
def plan_step(plan, lengths, groups, settings, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Fill the plan for the arrays that have a gradient; return their number."""
    before_entering = enter_ieee()
    count, last, total = 0, -1, 0
    for k in range(plan.grads.size):
        if plan.grads[k] == 0:
            continue
        previous = plan.rows[count - 1]
        if count == 0 or groups[k] != groups[previous] or steps[k] != steps[previous]:
            last += 1
            _write_constants(plan.constants[last], settings[groups[k]], steps[k] + 1, grad_scale)
        plan.rows[count] = k
        plan.offsets[count] = total
        plan.which[count] = last
        total += lengths[k]
        count += 1
    plan.offsets[count] = total
    leave_ieee(before_entering)
    return count


@kernel
def prepare(objects, wanted, plan, lengths, groups, settings, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Check the gradients and plan the step; return how many arrays have one, or -1 if one is not as wanted.

    Args:
        objects: (n,) uint64: where each gradient's array object lies.
        wanted: a `gather.Wanted`.
        plan: the `Plan` to fill.
        lengths: (n,) int64: number of elements of each array.
        groups: (n,) int64: the row of `settings` of each array.
        settings: float64: a `folding.Settings` a row.
        steps: (n,) int64: updates made so far.
        grad_scale: float64: multiplies every gradient.
    """
    if not gather(objects, wanted, plan.grads):
        return -1
    return plan_step(plan, lengths, groups, settings, steps, grad_scale)


@kernel
def prepare_gathered(plan, lengths, groups, settings, steps, grad_scale):  # type: ignore[no-untyped-def]
    """Plan a step whose gradients' addresses are in the plan already. Arguments as for `prepare`."""
    return plan_step(plan, lengths, groups, settings, steps, grad_scale)
