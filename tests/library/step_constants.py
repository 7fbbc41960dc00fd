"""The library's constants of one step, for tests of the element functions without a kernel."""

from __future__ import annotations

from numba_adam.numerics.constants import Constants, bias_correction, correct
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters


def constants_of(
    hyperparameters: Hyperparameters, step: int, dtype: str, grad_scale: float = 1.0, clip_value: float = 0.0
) -> Constants:
    """Return the constants of update number `step`, 1 for the first, of arrays of a dtype."""
    s = settings(hyperparameters, dtype)
    return correct(s, bias_correction(s.beta1, step), bias_correction(s.beta2, step), grad_scale, clip_value)
