"""The element mathematics, compiled for the CPU, and its loops over arrays of one dtype. Imports Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels.compile import apart, bind, inline, inlined
from numba_adam.cpu.kernels.formats import narrow_bfloat16
from numba_adam.cpu.kernels.prefetch import STRETCH, ask_ahead
from numba_adam.numerics import element
from numba_adam.numerics.constants import Constants, without_floors
from numba_adam.numerics.operations import product

_product = inline(product)
moments = inline(bind(element.moments, product=_product))
_largest = inline(element.largest)
adapt = inline(bind(element.adapt, product=_product))
_average = inline(bind(element.average, product=_product))
floorless = inlined(without_floors)


@apart
def adam(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        param[i] = adapt(param[i], exp_avg[i], exp_avg_sq[i], c)


@apart
def amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array that keeps its largest second moment."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        max_exp_avg_sq[i] = _largest(max_exp_avg_sq[i], exp_avg_sq[i])
        param[i] = adapt(param[i], exp_avg[i], max_exp_avg_sq[i], c)


@apart
def average(ema, param, c):  # type: ignore[no-untyped-def]
    """Update the moving average of one array's weights."""
    for i in range(ema.size):
        ema[i] = _average(ema[i], param[i], c)


@inlined
def is_bare(c):  # type: ignore[no-untyped-def]
    """Say whether a step does without clipping by value and L2 decay, as nearly all do."""
    return c.clip_value == c.zero and c.weight_decay == c.zero


NO_DECAY, NO_FLOOR = np.float32(0), np.float32(-np.inf)


@inlined
def bare(c, decoupled_decay, eps, exp_avg_floor, exp_avg_sq_floor, least_exp_avg_sq):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with another decay, another eps and other floors.

    A compiler takes what is asked of constants out of a loop only as long as the loop is short; what is zero here is
    zero in the program, whatever the loop's length.
    """
    zero: Any = np.float32(0)
    return Constants(
        c.beta1,
        c.one_minus_beta1,
        c.beta2,
        c.one_minus_beta2,
        c.grad_scale,
        zero,
        zero,
        decoupled_decay,
        c.step_size,
        eps,
        exp_avg_floor,
        exp_avg_sq_floor,
        least_exp_avg_sq,
        c.ema_decay,
        c.one_minus_ema_decay,
        zero,
    )


@inlined
def _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, i, c):  # type: ignore[no-untyped-def]
    """Update one element; `ema` and `copy` may be None."""
    exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
    param[i] = adapt(param[i], exp_avg[i], exp_avg_sq[i], c)
    if ema is not None:
        ema[i] = _average(ema[i], param[i], c)
    if copy is not None:
        copy[i] = narrow_bfloat16(np.float32(param[i]))


@apart
def adam_bare(param, grad, exp_avg, exp_avg_sq, ema, copy, asked, constants):  # type: ignore[no-untyped-def]
    """Update one array in a step that `is_bare`, and what is to be updated beside, in the same loop.

    Args:
        param: the parameters, and so on: arrays of one dtype.
        grad: the gradients.
        exp_avg: the first moments.
        exp_avg_sq: the second moments.
        ema: the average of the weights, or None; what is None costs nothing.
        copy: where the parameters are put as bfloat16, or None.
        asked: for how many `stretches` at the beginning memory is asked for ahead.
        constants: those of the step.
    """
    c = bare(
        constants,
        constants.decoupled_decay,
        constants.eps,
        constants.exp_avg_floor,
        constants.exp_avg_sq_floor,
        constants.least_exp_avg_sq,
    )
    rest = np.uint64(asked * STRETCH)
    for begin in range(np.uint64(0), rest, np.uint64(STRETCH)):
        ask_ahead(param, begin)
        ask_ahead(grad, begin)
        ask_ahead(exp_avg, begin)
        ask_ahead(exp_avg_sq, begin)
        if ema is not None:
            ask_ahead(ema, begin)
        for k in range(STRETCH):
            _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, begin + np.uint64(k), c)
    for i in range(rest, np.uint64(param.size)):
        _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, i, c)
