"""The Adam optimizer in one pass over memory, for arrays of any framework, with an optional parameter server.

    import numba_adam as na

    opt = na.Adam({"w": w, "b": b}, lr=1e-3)      # NumPy arrays, or arrays of any framework
    opt.step({"w": grad_w, "b": grad_b})          # updates w and b in place

    na.adam_update(w, grad_w, exp_avg, exp_avg_sq, step=1)

`numba_adam.server` is the parameter server, and `numba_adam.client` its client.

Importing this package does not import Numba, gRPC or a framework. The first use of each imports it. This file may
import the standard library, and the package's own modules on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba_adam import errors, interop
    from numba_adam.errors import NumbaAdamError
    from numba_adam.functional import adam_update
    from numba_adam.optimizer import Adam, AdamW
    from numba_adam.rows.functional import adam_catch_up_rows, adam_update_rows
    from numba_adam.rows.history import RowHistory
    from numba_adam.settings.hyperparameters import Hyperparameters
    from numba_adam.settings.results import StepResult
    from numba_adam.warmup import warmup

__version__ = "0.1.0"

_HOME = {
    "Adam": "numba_adam.optimizer",
    "AdamW": "numba_adam.optimizer",
    "Hyperparameters": "numba_adam.settings.hyperparameters",
    "NumbaAdamError": "numba_adam.errors",
    "RowHistory": "numba_adam.rows.history",
    "StepResult": "numba_adam.settings.results",
    "adam_catch_up_rows": "numba_adam.rows.functional",
    "adam_update": "numba_adam.functional",
    "adam_update_rows": "numba_adam.rows.functional",
    "warmup": "numba_adam.warmup",
}
_MODULES = ("errors", "interop")

__all__ = [
    "Adam",
    "AdamW",
    "Hyperparameters",
    "NumbaAdamError",
    "RowHistory",
    "StepResult",
    "__version__",
    "adam_catch_up_rows",
    "adam_update",
    "adam_update_rows",
    "errors",
    "interop",
    "warmup",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"numba_adam.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
