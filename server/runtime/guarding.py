"""The guards of a model: whether a push may come now, and whether its gradients are small enough. Imports the rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import GradientTooLargeError
from numba_adam.ps.guards import Guards
from numba_adam.server.runtime.rates import Cost, Rates, limited

_BLOCK = 1 << 16  # elements: a copy in float64 fits the cache
_ROUNDING = 1e-12  # a norm that equals the limit is not refused because of its rounding

Flat = npt.NDArray[Any]


class Guarding:
    """Enforces the guards of one model.

    Args:
        name: the model's.
        guards: its limits.
    """

    def __init__(self, name: str, guards: Guards) -> None:
        self._name, self._guards = name, guards
        self._rates = Rates()

    @property
    def largest_element(self) -> float:
        """Largest magnitude of an element; infinity without such a limit."""
        return math.inf if self._guards.largest_element is None else self._guards.largest_element

    def admit(self) -> None:
        """Count a push that is about to be received.

        Raises:
            RateLimitedError: it comes too soon.
        """
        rate = self._guards.pushes_per_second
        wait = 0.0 if rate is None else self._rates.take([Cost(self._name, "pushes", rate, 1)])
        if wait:
            raise limited(f"model {self._name!r}: its guard allows {rate:g} pushes per second", wait)

    def check_norm(self, gradient: Flat, loss_scale: float = 1.0) -> None:
        """Check the norm of all gradients of a push, which are to be divided by a loss scale.

        Raises:
            GradientTooLargeError: it exceeds the guard.
        """
        largest = self._guards.largest_norm
        if largest is None:
            return
        norm = norm_of(gradient) / loss_scale
        if norm > largest * (1 + _ROUNDING):
            raise GradientTooLargeError(
                f"the norm of the gradients is {norm:.6g}: the model's guard largest_norm={largest:g} refuses larger "
                "ones; clip the gradients, or create the model with another guard"
            )


def norm_of(flat: Flat) -> float:
    """Return the 2-norm of finite values, which may have squares beyond the range of float64."""
    top = max((float(np.abs(flat[at : at + _BLOCK]).max()) for at in range(0, flat.size, _BLOCK)), default=0.0)
    if top == 0.0:
        return 0.0
    scale = 2.0 ** -math.frexp(top)[1] if abs(math.frexp(top)[1]) < 1000 else 1.0 / top
    total = 0.0
    for at in range(0, flat.size, _BLOCK):
        block = flat[at : at + _BLOCK].astype(np.float64) * scale
        total += float(np.dot(block, block))
    return math.sqrt(total) / scale
