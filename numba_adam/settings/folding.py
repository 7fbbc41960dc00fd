"""Fold hyperparameters and a step number into the constants of one update. Imports the standard library alone.

Everything that is the same for all elements is computed here, once, in float64: bias corrections, signs, decays.
`bias_correction` and `correct` are compiled too, so that a step over many arrays needs no Python for each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba_adam.settings.hyperparameters import Hyperparameters


class Settings(NamedTuple):
    """What hyperparameters mean for arrays of one dtype, whatever the step; float64."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    eps_is_corrected: float  # 1 where eps follows the second moment's bias correction (Algorithm 1), else 0
    weight_decay: float
    decay_is_decoupled: float  # 1 where weight decay shrinks the parameter (AdamW), 0 where it joins the gradient (L2)
    direction: float  # 1 to descend, -1 to climb
    exp_avg_floor: float  # a first moment smaller in magnitude than this becomes zero
    exp_avg_sq_floor: float  # likewise the second moment
    ema_decay: float  # decay rate of the weights' moving average, where one is kept


class Constants(NamedTuple):
    """What `element` needs beside the element; in float64 here, in the arrays' dtype in the kernels."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    grad_scale: float  # multiplies the gradient; negative to climb
    clip_value: float  # largest magnitude of the gradient after that; 0: any
    weight_decay: float  # L2: added to the gradient, times the parameter
    decoupled_decay: float  # AdamW: the part of the parameter that goes
    step_size: float  # lr, bias-corrected
    eps: float  # epsilon-hat
    exp_avg_floor: float
    exp_avg_sq_floor: float
    least_exp_avg_sq: float  # of the second moment, as long as the first one is not zero
    ema_decay: float  # of the weights' moving average
    one_minus_ema_decay: float
    zero: float


def without_floors(c: Constants, eps: float) -> Constants:
    """Return the constants with another eps, without floors: for moments with other means against small numbers."""
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


class Floors(NamedTuple):
    """The magnitudes below which a moment becomes zero."""

    exp_avg: float
    exp_avg_sq: float


# The second moment's floor is the smallest normal number. The first moment's is 2**30 times that, so that its
# product with a step size of 1e-8 or more is normal too.
FLOORS = {
    "float32": Floors(exp_avg=2.0**-96, exp_avg_sq=2.0**-126),
    "float64": Floors(exp_avg=2.0**-992, exp_avg_sq=2.0**-1022),
}


def settings(hyperparameters: Hyperparameters, dtype: str, ema_decay: float = 0.0) -> Settings:
    """Return what hyperparameters mean for moments of a dtype's range, "float32" (bfloat16 has it too) or "float64"."""
    return Settings(
        lr=hyperparameters.lr,
        beta1=hyperparameters.betas[0],
        beta2=hyperparameters.betas[1],
        eps=hyperparameters.eps,
        eps_is_corrected=1.0 if hyperparameters.eps_mode == "algorithm1" else 0.0,
        weight_decay=hyperparameters.weight_decay,
        decay_is_decoupled=1.0 if hyperparameters.decoupled_weight_decay else 0.0,
        direction=-1.0 if hyperparameters.maximize else 1.0,
        exp_avg_floor=FLOORS[dtype].exp_avg,
        exp_avg_sq_floor=FLOORS[dtype].exp_avg_sq,
        ema_decay=ema_decay,
    )


def product(a: float, b: float) -> float:
    """Return a * b, rounded before anything else happens to it; on a GPU bound to what says so, as in `element`."""
    return a * b


def bias_correction(beta: float, step: int) -> float:
    """Return 1 - beta ** step, by repeated doubling.

    An average that starts at zero is too small by this factor after `step` updates. Additions and multiplications are
    rounded alike everywhere, while libm's pow differs between CPUs; and digits are not lost as in 1 - beta ** step,
    where nearly equal numbers cancel: with p = 1 - beta**m and q = 1 - beta**n at hand,
    1 - beta**(m + n) = p + (1 - p) * q, which for m = n is q * (2 - q). Good to 3 ulp for any beta and step.
    """
    correction = 0.0  # 1 - beta**m, m being the bits of step done so far
    gap = 1.0 - beta  # 1 - beta**n, for n = 1, 2, 4, ...
    while step > 0:
        if step & 1:
            correction += product(1.0 - correction, gap)
        gap = product(gap, 2.0 - gap)
        step >>= 1
    return correction


# float64 gradients whose squares overflow, or lose digits, are multiplied by one of these powers of two before they are
# squared: no digit of theirs changes. Two are enough for all of float64's range, as in Blue 1978 (LAPACK's nrm2).
PLAIN_SQUARES, OF_LARGE, OF_SMALL = 1.0, 2.0**-700, 2.0**600
_SMALL = 2.0**-900  # no sum of squares from here on has lost a digit that counts
_INFINITY = math.inf


def scale_of_squares(sum_of_squares: float) -> float:
    """Return what float64 gradients are to be multiplied by before they are squared; PLAIN_SQUARES where the sum holds.

    Args:
        sum_of_squares: of the gradients as they are. If it is not finite, either a square has overflowed or a gradient
            is not finite; the sum of scaled squares is finite in the first case alone.
    """
    if _SMALL <= sum_of_squares < _INFINITY:
        return PLAIN_SQUARES
    return OF_SMALL if sum_of_squares < _SMALL else OF_LARGE


# A finite gradient from here on has a square that the second moment cannot hold: it would be infinite for ever. It is a
# little less than the largest number's root (2**64, 2**512): the gradient's product with its factor is rounded.
LARGEST_GRADIENT = {"float32": 2.0**64 * (1 - 2.0**-20), "float64": 2.0**512 * (1 - 2.0**-20)}


def is_too_large(largest: float, factor: float, clip_value: float, limit: float) -> bool:
    """Say whether a gradient's square would overflow the second moment.

    Args:
        largest: the largest magnitude of a gradient.
        factor: what multiplies the gradients.
        clip_value: largest magnitude of a gradient after that; 0: any.
        limit: of LARGEST_GRADIENT, that of the moments' range.
    """
    magnitude = product(largest, abs(factor))
    return magnitude >= limit and (clip_value == 0.0 or clip_value >= limit)


def measured(sum_of_squares: float, factor: float, max_norm: float, scale: float) -> tuple[float, float]:
    """Return the norm of gradients that are multiplied by `factor`, and the factor that brings it down to `max_norm`.

    As PyTorch's clip_grad_norm_ does, with 1e-6 in the denominator.

    Args:
        sum_of_squares: of the gradients, before they are multiplied by `factor`, but multiplied by `scale`.
        factor: what multiplies them.
        max_norm: the largest norm that is left as it is.
        scale: from `scale_of_squares`.
    """
    norm = product(math.sqrt(sum_of_squares), abs(factor))
    ratio = product(max_norm, scale) / (norm + product(1e-6, scale))
    return norm / scale, product(factor, ratio) if ratio < 1.0 else factor


def correct(
    s: Settings, bias_correction1: float, bias_correction2: float, grad_scale: float, clip_value: float
) -> Constants:
    """Return the constants of the step with these bias corrections.

    Args:
        s: the settings.
        bias_correction1: `bias_correction(s.beta1, step)`, step being 1 for the first update.
        bias_correction2: `bias_correction(s.beta2, step)`.
        grad_scale: multiplies every gradient.
        clip_value: largest magnitude of a gradient after that; 0: any.
    """
    root = math.sqrt(bias_correction2)
    # Algorithm 1 adds eps to sqrt(exp_avg_sq / bias_correction2); numerator and denominator times
    # sqrt(bias_correction2) give the efficient order with this eps.
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
        # The smallest normal number: no root of a second moment that is not zero feels it, and 0 / 0 becomes 0.
        max(eps, s.exp_avg_sq_floor),
        s.exp_avg_floor,
        s.exp_avg_sq_floor,
        4.0 * s.exp_avg_sq_floor,
        s.ema_decay,
        1.0 - s.ema_decay,
        0.0,
    )


def fold(
    hyperparameters: Hyperparameters, step: int, dtype: str, grad_scale: float = 1.0, clip_value: float = 0.0
) -> Constants:
    """Return the constants of update number `step`, 1 for the first, of arrays of a dtype."""
    s = settings(hyperparameters, dtype)
    return correct(s, bias_correction(s.beta1, step), bias_correction(s.beta2, step), grad_scale, clip_value)
