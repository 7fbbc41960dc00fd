"""The element mathematics, compiled for the CPU, and its loops over arrays of one dtype. Imports Numba."""

from __future__ import annotations

from numba_adam import element
from numba_adam.kernels.compile import bind, inline

_product = inline(element.product)
moments = inline(bind(element.moments, product=_product))
_largest = inline(element.largest)
adapt = inline(bind(element.adapt, product=_product))
_average = inline(bind(element.average, product=_product))


@inline
def adam(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        param[i] = adapt(param[i], exp_avg[i], exp_avg_sq[i], c)


@inline
def amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array that keeps its largest second moment."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        max_exp_avg_sq[i] = _largest(max_exp_avg_sq[i], exp_avg_sq[i])
        param[i] = adapt(param[i], exp_avg[i], max_exp_avg_sq[i], c)


@inline
def average(ema, param, c):  # type: ignore[no-untyped-def]
    """Update the moving average of one array's weights."""
    for i in range(ema.size):
        ema[i] = _average(ema[i], param[i], c)
