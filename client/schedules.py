"""Learning rates by version, which the server evaluates: for `create_model(lr=...)` and `Model.set(lr=...)`.

    from numba_adam.client import schedules

    warm_up = schedules.Linear(0.0, 1e-3, steps=500)
    lr = schedules.Chain((warm_up, schedules.Cosine(1e-3, 1e-5, steps=9_500)), boundaries=(500,))

Each has `lr_at(version)`. May import `numba_adam.ps`.
"""

from numba_adam.ps.schedules import Chain, Constant, Cosine, InverseSquareRoot, Linear, Piecewise, Schedule

__all__ = ["Chain", "Constant", "Cosine", "InverseSquareRoot", "Linear", "Piecewise", "Schedule"]
