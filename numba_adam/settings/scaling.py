"""The treatment of one step's gradients: scaled, measured, clipped, set to zero. Knows no kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba_adam.errors import HyperparameterError
from numba_adam.settings.limits import LIMITS
from numba_adam.settings.scalars import plain, real


class Scaling(NamedTuple):
    """The treatment of one step's gradients."""

    factor: float = 1.0  # multiplies every gradient
    clip_value: float = 0.0  # largest magnitude of an element afterwards; 0: any
    max_norm: float = math.inf  # largest global norm
    zero_grad: bool = False  # whether the pass sets the gradients to zero
    is_measured: bool = False  # whether the gradients are read first, for their norm and a finite check
    loss_scale: Any = None  # one float32 on a GPU that also divides every gradient

    def with_factor(self, factor: float) -> Scaling:
        """Return a copy with another factor, in half the time of `_replace`."""
        return Scaling._make((factor, *self[1:]))


AS_THEY_ARE = Scaling()


def clip_value_of(value: object | None, dtype: str) -> float:
    """Return the argument `clip_value` of a step, 0 for None.

    Raises:
        HyperparameterError: it is not positive, or the compute dtype cannot hold it.
    """
    if value is None:
        return 0.0
    result, smallest = positive("clip_value", value), LIMITS[dtype].smallest
    if result < smallest:
        raise HyperparameterError(
            f"clip_value={value!r}: it must be at least {smallest!r}, as {dtype} holds no less, or None"
        )
    return result


def max_norm_of(value: object | None) -> float:
    """Return the argument `max_grad_norm` of a step. Infinity, and None, clip nothing.

    Raises:
        HyperparameterError: it is not positive.
    """
    number = math.inf if value is None else value if type(value) is float else plain(value)
    return number if isinstance(number, float) and number == math.inf else positive("max_grad_norm", value)


def positive(name: str, value: object) -> float:
    """Return an argument of a step that must be a positive number.

    Raises:
        HyperparameterError: it is not.
    """
    result = real(name, value)
    if result <= 0:
        raise HyperparameterError(f"{name}={value!r}: it must be above 0, or None")
    return result
