"""Fold hyperparameters and a step number into the constants of one update. Imports the standard library alone.

Everything that is the same for all elements is computed here, once, in float64: bias corrections, signs, decays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba_adam.hyperparameters import Hyperparameters


class Constants(NamedTuple):
    """What `element.update` needs beside the element; in float64 here, in the arrays' dtype in the kernels."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    grad_scale: float  # multiplies the gradient; negative to maximise
    weight_decay: float  # L2: added to the gradient, times the parameter
    decoupled_decay: float  # AdamW: lr * weight_decay, the part of the parameter that goes
    step_size: float  # lr, bias-corrected
    eps: float  # epsilon-hat
    exp_avg_floor: float  # a first moment smaller in magnitude than this is stored as zero
    exp_avg_sq_floor: float  # likewise the second moment
    zero: float


class Floors(NamedTuple):
    """The magnitudes below which a moment is stored as zero."""

    exp_avg: float
    exp_avg_sq: float


# The second moment's floor is the smallest normal number. The first moment's is 2**30 times that, so that its
# product with a step size of 1e-8 or more is normal too.
FLOORS = {
    "float32": Floors(exp_avg=2.0**-96, exp_avg_sq=2.0**-126),
    "float64": Floors(exp_avg=2.0**-992, exp_avg_sq=2.0**-1022),
}


def fold(hyperparameters: Hyperparameters, step: int, dtype: str, grad_scale: float = 1.0) -> Constants:
    """Return the constants of update number `step`.

    Args:
        hyperparameters: lr, betas and the rest; already checked.
        step: 1 for the first update.
        dtype: the arrays' dtype, "float32" or "float64".
        grad_scale: multiplies every gradient.
    """
    beta1, beta2 = hyperparameters.betas
    bias_correction1 = 1.0 - power(beta1, step)
    bias_correction2 = 1.0 - power(beta2, step)
    root_correction2 = math.sqrt(bias_correction2)
    decay, decoupled = hyperparameters.weight_decay, hyperparameters.decoupled_weight_decay
    return Constants(
        beta1=beta1,
        one_minus_beta1=1.0 - beta1,
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        grad_scale=-grad_scale if hyperparameters.maximize else grad_scale,
        weight_decay=0.0 if decoupled else decay,
        decoupled_decay=hyperparameters.lr * decay if decoupled else 0.0,
        step_size=hyperparameters.lr * root_correction2 / bias_correction1,
        # Algorithm 1 adds eps to sqrt(exp_avg_sq / bias_correction2); multiplying numerator and denominator by
        # sqrt(bias_correction2) gives the efficient order with this eps.
        eps=hyperparameters.eps * root_correction2 if hyperparameters.eps_mode == "algorithm1" else hyperparameters.eps,
        exp_avg_floor=FLOORS[dtype].exp_avg,
        exp_avg_sq_floor=FLOORS[dtype].exp_avg_sq,
        zero=0.0,
    )


def power(base: float, exponent: int) -> float:
    """Return base ** exponent by repeated squaring.

    Multiplications are rounded alike everywhere; libm's pow differs between CPUs and C libraries.
    """
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
