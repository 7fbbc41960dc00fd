"""The rounds of a model of the mode "sync". May import the error tree."""

from __future__ import annotations

import math
import numbers
from dataclasses import asdict, dataclass
from typing import Any

from numba_adam.errors import HyperparameterError

MOST_WORKERS = 1024
"""Largest number of workers in rounds: a server remembers the sessions of so many."""

DEFAULT_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How many workers make a round, and how long it may take.

    Raises:
        HyperparameterError: a value is out of range.
    """

    workers: int
    """Number of workers that train the model, backup workers among them."""

    backup: int = 0
    """Number of backup workers: a round closes as soon as it has `workers - backup` gradients."""

    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    """Time from the first gradient of a round until it is aborted, if it has not closed."""

    def __post_init__(self) -> None:
        """Check every value, and turn numbers of other types into int and float."""
        object.__setattr__(self, "workers", whole_number("workers", self.workers, 1, MOST_WORKERS))
        object.__setattr__(self, "backup", whole_number("backup", self.backup, 0, self.workers - 1))
        object.__setattr__(self, "timeout_seconds", positive_seconds("round_timeout_seconds", self.timeout_seconds))

    @property
    def needed(self) -> int:
        """Number of gradients that close a round."""
        return self.workers - self.backup

    def to_record(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


NAMES = tuple(RoundSettings.__dataclass_fields__)


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return a whole number.

    Raises:
        HyperparameterError: it is another number, or none.
    """
    number = -1 if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if not least <= number <= most:
        raise HyperparameterError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
    return number


def positive_seconds(name: str, value: object) -> float:
    """Return a number of seconds.

    Raises:
        HyperparameterError: it is not a finite number above 0.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if not 0 < number < math.inf:
        raise HyperparameterError(f"{name}: expected a finite number of seconds above 0, got {value!r}")
    return number
