"""Medians and quartiles, which are robust against outliers. May import the standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """The median and the quartiles of some numbers."""

    median: float
    lower: float  # first quartile
    upper: float  # third quartile


def summarise(values: Sequence[float]) -> Summary:
    """Return the median and the quartiles, with linear interpolation. A single value is all three.

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
    """Return a quantile: the smallest value that is not exceeded by at least this share of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
