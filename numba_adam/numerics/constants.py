"""The constants of one step: everything that is the same for all elements, computed once, in float64.

The functions are plain Python, and kernels compile them too: a step over many arrays runs no Python for each array.
Imports `operations` alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba_adam.numerics.operations import product


class Settings(NamedTuple):
    """What hyperparameters mean for arrays of one dtype, at any step; float64."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    eps_is_corrected: float  # 1: eps follows the bias correction of the second moment (Algorithm 1); else 0
    weight_decay: float
    decay_is_decoupled: float  # 1: weight decay shrinks the parameter (AdamW); 0: it is added to the gradient (L2)
    direction: float  # 1 to descend, -1 to climb
    exp_avg_floor: float  # a first moment below this magnitude becomes zero
    exp_avg_sq_floor: float  # likewise the second moment
    ema_decay: float  # decay rate of the moving average of the weights


class Constants(NamedTuple):
    """What `element` needs besides the element: float64 here, the arrays' dtype in the kernels."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    grad_scale: float  # multiplies the gradient; negative to climb
    clip_value: float  # largest magnitude of the scaled gradient; 0: no limit
    weight_decay: float  # L2: times the parameter, added to the gradient
    decoupled_decay: float  # AdamW: the fraction that the parameter loses
    step_size: float  # bias-corrected lr
    eps: float  # epsilon-hat
    exp_avg_floor: float
    exp_avg_sq_floor: float
    least_exp_avg_sq: float  # lower bound of the second moment while the first one is not zero
    ema_decay: float  # of the moving average of the weights
    one_minus_ema_decay: float
    zero: float


class Floors(NamedTuple):
    """The magnitudes below which a moment becomes zero."""

    exp_avg: float
    exp_avg_sq: float


# The second moment's floor is the smallest normal number. The first moment's floor is 2**30 times that, so its product
# with a step size of 1e-8 or more is normal too.
FLOORS = {
    "float32": Floors(exp_avg=2.0**-96, exp_avg_sq=2.0**-126),
    "float64": Floors(exp_avg=2.0**-992, exp_avg_sq=2.0**-1022),
}


def bias_correction(beta: float, step: int) -> float:
    """Return 1 - beta ** step, by repeated doubling.

    An average that starts at zero is too small by this factor after `step` updates. Additions and multiplications
    round the same way everywhere, while libm's pow differs between CPUs. No digits are lost either, as they are where
    1 - beta ** step subtracts nearly equal numbers: with p = 1 - beta**m and q = 1 - beta**n,
    1 - beta**(m + n) = p + (1 - p) * q, which for m = n is q * (2 - q). Accurate to 3 ulp for any beta and step.
    """
    correction = 0.0  # 1 - beta**m, where m is the part of `step` processed so far
    gap = 1.0 - beta  # 1 - beta**n, for n = 1, 2, 4, ...
    while step > 0:
        if step & 1:
            correction += product(1.0 - correction, gap)
        gap = product(gap, 2.0 - gap)
        step >>= 1
    return correction


def correct(
    s: Settings, bias_correction1: float, bias_correction2: float, grad_scale: float, clip_value: float
) -> Constants:
    """Return the constants of the step with these bias corrections.

    Args:
        s: the settings.
        bias_correction1: `bias_correction(s.beta1, step)`; `step` is 1 for the first update.
        bias_correction2: `bias_correction(s.beta2, step)`.
        grad_scale: multiplies every gradient.
        clip_value: largest magnitude of a scaled gradient; 0: no limit.
    """
    root = math.sqrt(bias_correction2)
    # Algorithm 1 adds eps to sqrt(exp_avg_sq / bias_correction2). Multiplying numerator and denominator by
    # sqrt(bias_correction2) gives the efficient order with this eps.
    eps = s.eps * (root if s.eps_is_corrected else 1.0)
    return Constants(
        s.beta1,
        1.0 - s.beta1,
        s.beta2,
        1.0 - s.beta2,
        s.direction * grad_scale,
        clip_value,
        s.weight_decay * (1.0 - s.decay_is_decoupled),
        s.lr * s.weight_decay * s.decay_is_decoupled,
        s.lr * root / bias_correction1,
        # At least the smallest normal number: too small to change a nonzero denominator, and it makes 0 / 0 a 0.
        eps if eps > s.exp_avg_sq_floor else s.exp_avg_sq_floor,
        s.exp_avg_floor,
        s.exp_avg_sq_floor,
        4.0 * s.exp_avg_sq_floor,
        s.ema_decay,
        1.0 - s.ema_decay,
        0.0,
    )


def without_floors(c: Constants, eps: float) -> Constants:
    """Return the constants with another eps and no floors: moments in 8 bits have other means against small numbers."""
    return Constants(
        c.beta1,
        c.one_minus_beta1,
        c.beta2,
        c.one_minus_beta2,
        c.grad_scale,
        c.clip_value,
        c.weight_decay,
        c.decoupled_decay,
        c.step_size,
        eps,
        c.zero,
        c.zero,
        c.zero,
        c.ema_decay,
        c.one_minus_ema_decay,
        c.zero,
    )
