"""Medians and quartiles, which a noisy machine cannot pull far. Imports the standard library alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Where the middle half of some numbers lies."""

    median: float
    lower: float  # first quartile
    upper: float  # third quartile


def summarise(values: Sequence[float]) -> Summary:
    """Return median and quartiles (linear interpolation between neighbours; one value is all three).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values: a median needs at least one")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, lower, upper)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of some values that at least such a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
