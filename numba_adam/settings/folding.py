"""From hyperparameters to the numbers that the step's mathematics takes. Imports `numerics.constants`."""

from __future__ import annotations

from numba_adam.numerics.constants import FLOORS, Settings
from numba_adam.settings.hyperparameters import Hyperparameters


def settings(hyperparameters: Hyperparameters, dtype: str, ema_decay: float = 0.0) -> Settings:
    """Return what hyperparameters mean for moments with the range of a dtype.

    Args:
        hyperparameters: those of a param group.
        dtype: "float32", whose range bfloat16 has too, or "float64".
        ema_decay: decay rate of the moving average of the weights; any value where there is none.
    """
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
