"""The guards of a model: limits of its pushes, whoever sends them. May import the error tree."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from numba_adam.errors import HyperparameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Limits of the pushes to a model. None: no limit.

    Raises:
        HyperparameterError: a limit is not a finite number above 0.
    """

    largest_norm: float | None = None
    """Largest 2-norm of all gradients of a push together."""

    largest_element: float | None = None
    """Largest magnitude of one element of a gradient."""

    pushes_per_second: float | None = None
    """Pushes of all workers together. After a second of rest, a second's number may come at once."""

    def __post_init__(self) -> None:
        """Check every limit, and turn numbers of other types into floats."""
        for name, limit in self.limits(with_none=True).items():
            if limit is not None:
                object.__setattr__(self, name, _positive(name, limit))

    def limits(self, *, with_none: bool = False) -> dict[str, float]:
        """Return the limits that exist, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values if with_none else {name: limit for name, limit in values.items() if limit is not None}


NO_GUARDS = Guards()
NAMES = tuple(item.name for item in fields(Guards))


def _positive(name: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise HyperparameterError(f"guards: {name}: expected a finite number above 0, got {value!r}")
    return number
