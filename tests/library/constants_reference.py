"""The oracle of a step's constants, computed in float64. Imports only NumPy.

The order of operations is part of it, since the package promises bits: 1 - beta**step is built from the binary digits
of the step, the last one first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Smallest normal number of the moments' range, and the first moment's floor.
FLOORS = {"float32": (2.0**-126, 2.0**-96), "float64": (2.0**-1022, 2.0**-992)}
DEFAULTS = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "eps_mode": "hat",
    "maximize": False,
    "amsgrad": False,
}


class Constants(NamedTuple):
    """The constants of the update of an element."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    grad_scale: float
    clip_value: float
    weight_decay: float
    decoupled_decay: float
    step_size: float
    eps: float
    exp_avg_floor: float
    exp_avg_sq_floor: float
    least_exp_avg_sq: float


def correction(beta: float, step: int) -> float:
    """Return 1 - beta**step, by combining the corrections of m and n steps."""
    missing, of_digit = 0.0, 1.0 - beta
    for digit in reversed(f"{step:b}"):
        if digit == "1":
            missing = missing + (1.0 - missing) * of_digit
        of_digit = of_digit * (2.0 - of_digit)
    return missing


def fold(hyperparameters: dict, step: int, range_: str, grad_scale: float = 1.0, clip_value: float = 0.0) -> Constants:
    """Return the constants of a step in float64, for moments with the range of "float32" or "float64"."""
    h = {**DEFAULTS, **hyperparameters}
    (beta1, beta2), decay = h["betas"], h["weight_decay"]
    root = float(np.sqrt(correction(beta2, step)))
    smallest, floor = FLOORS[range_]
    return Constants(
        beta1=beta1,
        one_minus_beta1=1.0 - beta1,
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        grad_scale=-grad_scale if h["maximize"] else grad_scale,
        clip_value=clip_value,
        weight_decay=0.0 if h["decoupled_weight_decay"] else decay,
        decoupled_decay=h["lr"] * decay if h["decoupled_weight_decay"] else 0.0,
        step_size=h["lr"] * root / correction(beta1, step),
        eps=max(smallest, h["eps"] * root if h["eps_mode"] == "algorithm1" else h["eps"]),
        exp_avg_floor=floor,
        exp_avg_sq_floor=smallest,
        least_exp_avg_sq=4 * smallest,
    )


def as_real(c: Constants, real: np.dtype) -> Constants:
    """Return the constants, rounded to the compute dtype."""
    return Constants(*map(real.type, c))
