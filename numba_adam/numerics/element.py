"""Adam's mathematics for one element. No formula of the update stands anywhere else.

The functions are plain Python: with NumPy scalars they run as they stand, and kernels compile the same source. They
contain no number: every constant comes in `c`, because one float64 literal would turn float32 code into float64. A
product that is added to something is written `product(a, b)`, which no compiler may fuse with the addition.

Imports NumPy and its neighbours in `numerics`.
"""

from __future__ import annotations

from typing import Any

from numba_adam.numerics.constants import Constants
from numba_adam.numerics.operations import choose, product, root

Real = Any  # a NumPy scalar, or its compiled counterpart


def moments(param: Real, grad: Real, exp_avg: Real, exp_avg_sq: Real, c: Constants) -> tuple[Real, Real]:
    """Return (exp_avg, exp_avg_sq), the two moving averages updated with a gradient: reading the compasses.

    Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1.

    Args:
        param: the parameter; L2 weight decay adds a fraction of it to the gradient.
        grad: its gradient.
        exp_avg: first moment, where we've been: the running mean of the gradients.
        exp_avg_sq: second moment, how bumpy the road is: the running mean of their squares.
        c: the step's constants, of the arrays' dtype.

    Every operation is rounded on its own (no fused multiply-add, no reordering), so the order of operations below
    determines the bits. A moment below its floor becomes zero. Otherwise a state that decays for thousands of steps
    without a gradient would become subnormal, and many CPUs are a hundred times slower with subnormal numbers.

    While the first moment is not zero, the second one is at least `least_exp_avg_sq`, four times its floor. So the
    second moment is never smaller than in exact arithmetic, however small the gradients are, and the update is never
    larger. A moment that decays without gradients loses less than its floor, and the decay from `least_exp_avg_sq` to
    the floor takes 1.4 / (1 - beta2) steps, so losses do not add up.

    The branches depend on constants, so compilers move them out of the loop, and an unused option costs nothing.
    Without decay an infinite parameter does not change its moments.
    """
    grad = product(c.grad_scale, grad)
    if c.clip_value != c.zero:
        grad = choose(grad > c.clip_value, c.clip_value, grad)
        grad = choose(grad < -c.clip_value, -c.clip_value, grad)
    if c.weight_decay != c.zero:
        grad = grad + product(c.weight_decay, param)
    exp_avg = product(c.beta1, exp_avg) + product(c.one_minus_beta1, grad)
    exp_avg_sq = product(c.beta2, exp_avg_sq) + product(product(c.one_minus_beta2, grad), grad)
    is_lost = abs(exp_avg) < c.exp_avg_floor
    exp_avg = choose(is_lost, c.zero, exp_avg)
    exp_avg_sq = choose(exp_avg_sq < c.exp_avg_sq_floor, c.zero, exp_avg_sq)
    raised = choose(exp_avg_sq < c.least_exp_avg_sq, c.least_exp_avg_sq, exp_avg_sq)
    exp_avg_sq = choose(is_lost, exp_avg_sq, raised)  # written like this, it is one masked instruction
    return exp_avg, exp_avg_sq


def largest(max_exp_avg_sq: Real, exp_avg_sq: Real) -> Real:
    """Return the largest second moment so far: the terrain of AMSGrad (Reddi et al. 2018). NaN stays NaN."""
    return max_exp_avg_sq if max_exp_avg_sq >= exp_avg_sq else exp_avg_sq


def adapt(param: Real, exp_avg: Real, terrain: Real, c: Constants) -> Real:
    """Return the parameter after the adaptive step.

    The efficient order of Kingma & Ba, section 2: the bias corrections are the same for all elements, so they are part
    of `c.step_size` and `c.eps`.

    Args:
        param: the parameter.
        exp_avg: first moment, already updated.
        terrain: second moment, already updated; with AMSGrad the largest so far.
        c: the step's constants, of the arrays' dtype.
    """
    denom = root(terrain) + c.eps
    if c.decoupled_decay != c.zero:
        param = param - product(c.decoupled_decay, param)
    return param - product(c.step_size, exp_avg) / denom


def average(ema: Real, param: Real, c: Constants) -> Real:
    """Return the exponential moving average of the weights (Polyak & Juditsky 1992), updated after a step.

    Args:
        ema: the average so far.
        param: the parameter, already updated.
        c: the step's constants, of the arrays' dtype.
    """
    return product(c.ema_decay, ema) + product(c.one_minus_ema_decay, param)
