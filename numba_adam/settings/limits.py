"""The range of hyperparameters that the compute dtype can represent. Imports only its neighbours.

A number that is refused here would silently become infinite, zero or one in the kernels. Learning rates and decays may
be arbitrarily small: their effect is then too small to be represented, as it should be.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

from numba_adam.errors import HyperparameterError
from numba_adam.settings.hyperparameters import Hyperparameters


class Limits(NamedTuple):
    """The range of a dtype."""

    largest: float  # finite number
    smallest: float  # positive normal number
    decay: float  # largest decay rate that does not round to 1


LIMITS = {
    "float32": Limits((2 - 2.0**-23) * 2.0**127, 2.0**-126, math.nextafter(1 - 2.0**-25, 0)),
    "float64": Limits(sys.float_info.max, sys.float_info.min, 1 - 2.0**-53),
}
_SAID = {"float32": ("2**128 (3.4e38)", "2**-126 (1.2e-38)"), "float64": ("2**1024 (1.8e308)", "2**-1022 (2.2e-308)")}


def check_held(h: Hyperparameters, dtype: str) -> None:
    """Refuse hyperparameters that a compute dtype cannot represent, directly or as constants of a step.

    Args:
        h: the hyperparameters.
        dtype: "float32" or "float64".

    Raises:
        HyperparameterError: one of them is out of the dtype's range; the message names it.
    """
    beta1, beta2 = h.betas
    if h.lr < 1e15 and 1e-30 < h.eps < 1e30 and h.weight_decay < 1e15 and beta1 < 0.9999 and beta2 < 0.9999999:
        return  # the usual case
    limits = LIMITS[dtype]
    for name, value in (("lr", h.lr), ("eps", h.eps), ("weight_decay", h.weight_decay)):
        if value > limits.largest:
            raise HyperparameterError(
                f"{name}={value!r}: the update is computed in {dtype}, so it must be below {_SAID[dtype][0]}"
            )
    if 0 < h.eps < limits.smallest:
        raise HyperparameterError(
            f"eps={h.eps!r}: the update is computed in {dtype}, so it must be 0, or at least {_SAID[dtype][1]}"
        )
    for index, beta in enumerate(h.betas):
        if beta > limits.decay:
            raise HyperparameterError(
                f"betas[{index}]={beta!r}: the update is computed in {dtype}, which rounds it to 1: it must be at most "
                f"{limits.decay!r}"
            )
    _check_folded(h, dtype)


def _check_folded(h: Hyperparameters, dtype: str) -> None:
    """Refuse hyperparameters whose products are beyond the range of a dtype."""
    beta1, beta2 = h.betas
    # Bias correction multiplies lr by sqrt(1 - beta2**step) / (1 - beta1**step). The factor is largest in the first
    # step, or tends to 1, its largest value.
    step_size = h.lr * max(1.0, math.sqrt(1.0 - beta2) / (1.0 - beta1))
    if step_size > LIMITS[dtype].largest:
        raise HyperparameterError(
            f"lr={h.lr!r} with betas={h.betas!r}: bias correction makes a step size of {step_size!r} of it, and the "
            f"update is computed in {dtype}: it must be below {_SAID[dtype][0]}; give a smaller learning rate"
        )
    if h.decoupled_weight_decay and h.lr * h.weight_decay > LIMITS[dtype].largest:
        raise HyperparameterError(
            f"lr={h.lr!r} times weight_decay={h.weight_decay!r}: the update is computed in {dtype}, so their product "
            f"must be below {_SAID[dtype][0]}"
        )


def check_factor(factor: float, dtype: str, of: str) -> None:
    """Refuse a factor of the gradients that a compute dtype cannot represent.

    Args:
        factor: multiplies every gradient.
        dtype: "float32" or "float64".
        of: the arguments that the factor comes from, for the message.

    Raises:
        HyperparameterError: it is out of the dtype's range.
    """
    limits = LIMITS[dtype]
    if abs(factor) <= limits.largest and not 0 < abs(factor) < limits.smallest:
        return
    raise HyperparameterError(
        f"the gradients are to be multiplied by {factor}, of {of}: it must be 0, or from {_SAID[dtype][1]} to "
        f"{_SAID[dtype][0]} in magnitude, for {dtype} holds no other"
    )


def check_ema_decay(decay: float, dtype: str) -> None:
    """Refuse a decay rate of the moving average of the weights that a compute dtype rounds to 1.

    Raises:
        HyperparameterError: it does.
    """
    if decay > LIMITS[dtype].decay:
        raise HyperparameterError(
            f"ema_decay={decay!r}: the average is computed in {dtype}, which rounds it to 1: it must be at most "
            f"{LIMITS[dtype].decay!r}"
        )
