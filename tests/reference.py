"""The oracle: one Adam step as in the papers, in wider arithmetic, slow and obvious. Imports only NumPy.

Nothing here comes from numba_adam, and nothing is folded: the bias corrections are divisions of the moments where
Algorithm 1 has them, and a power is a power.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class After(NamedTuple):
    """The results of a step, and their terms, for error bounds."""

    param: np.ndarray
    exp_avg: np.ndarray
    exp_avg_sq: np.ndarray
    max_exp_avg_sq: np.ndarray
    update: np.ndarray  # what lr made of the moments; subtracted from the parameter


def adam_step(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    step,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    eps_mode="hat",
    maximize=False,
    grad_scale=1.0,
    max_exp_avg_sq=0.0,
    real=np.float64,
) -> After:
    """Return the state after step number `step`, computed in `real`; the arguments do not change."""
    param, grad, exp_avg, exp_avg_sq = (np.asarray(array, real) for array in (param, grad, exp_avg, exp_avg_sq))
    lr, beta1, beta2, eps, decay, scale = (real(x) for x in (lr, *betas, eps, weight_decay, grad_scale))
    grad = (-scale if maximize else scale) * grad + (0 if decoupled_weight_decay else decay) * param
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    largest = np.maximum(np.asarray(max_exp_avg_sq, real), exp_avg_sq)
    bias_correction1, bias_correction2 = 1 - beta1**step, 1 - beta2**step
    if eps_mode == "algorithm1":
        update = lr * (exp_avg / bias_correction1) / (np.sqrt(largest / bias_correction2) + eps)
    else:
        update = lr * np.sqrt(bias_correction2) / bias_correction1 * exp_avg / (np.sqrt(largest) + eps)
    kept = 1 - lr * decay if decoupled_weight_decay else real(1)
    return After(kept * param - update, exp_avg, exp_avg_sq, largest, update)
