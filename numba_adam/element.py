"""Adam's mathematics for one element. No formula of the update stands anywhere else. Imports NumPy alone.

The function is plain Python: called with NumPy scalars it runs as it stands, and the kernels compile the same source.
It holds no numbers: every constant comes in `c`, because one float64 literal would turn float32 code into float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numba_adam.folding import Constants

Real = Any  # a NumPy scalar, or what a compiler makes of it


def update(
    param: Real, grad: Real, exp_avg: Real, exp_avg_sq: Real, max_exp_avg_sq: Real, c: Constants
) -> tuple[Real, Real, Real, Real]:
    """Return (param, exp_avg, exp_avg_sq, max_exp_avg_sq) after one step.

    Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1 in the efficient order of section 2: the bias corrections
    are folded into `c.step_size` and `c.eps`, which are the same for every element.

    Args:
        param: the parameter.
        grad: its gradient.
        exp_avg: first moment, where we've been: the running mean of the gradients.
        exp_avg_sq: second moment, how bumpy the road is: the running mean of their squares.
        max_exp_avg_sq: largest second moment so far (AMSGrad, Reddi et al. 2018), or `c.zero` without AMSGrad:
            the maximum with zero is the second moment itself.
        c: the folded constants, of the arrays' dtype.

    Every operation is rounded on its own (no fused multiply-add, no reordering), so the order below is the order
    of the bits. A moment below its floor is stored as zero: a state that decays for thousands of steps without a
    gradient would else wander through subnormal numbers, which many CPUs handle a hundred times more slowly.
    """
    grad = c.grad_scale * grad + c.weight_decay * param
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * grad
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * grad * grad
    exp_avg = c.zero if abs(exp_avg) < c.exp_avg_floor else exp_avg
    exp_avg_sq = c.zero if exp_avg_sq < c.exp_avg_sq_floor else exp_avg_sq
    max_exp_avg_sq = max_exp_avg_sq if max_exp_avg_sq >= exp_avg_sq else exp_avg_sq
    denom = np.sqrt(max_exp_avg_sq) + c.eps
    param = param - c.decoupled_decay * param - c.step_size * exp_avg / denom
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq
