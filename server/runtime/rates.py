"""Limits of rate: how long a caller must wait before it may do more. Imports the error tree."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from numba_adam.errors import RateLimitedError
from numba_adam.ps.detail import with_detail

_LONGEST_WAIT_MILLISECONDS = (1 << 32) - 1  # what the detail of an error can hold
_BURST_SECONDS = 1.0
"""After a rest, a caller may do at once what its rate allows in this time, and one thing more."""


class Cost(NamedTuple):
    """What one call takes of one rate."""

    whose: str
    """Whose rate it is."""

    what: str
    """Of what: a plural noun."""

    rate: float
    """Amount that is allowed per second."""

    amount: float
    """What the call takes."""


class Rates:
    """The rates of many callers. A call may exceed a rate; then its caller must wait until it would have kept it.

    Args:
        clock: returns seconds. It must not go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at: dict[tuple[str, str], tuple[float, float]] = {}  # the rate, and when it is kept again

    def take(self, costs: Sequence[Cost], *, must: bool = False) -> float:
        """Take what a call costs if all its rates allow it; return 0, or else the seconds to wait.

        Args:
            costs: of the call.
            must: True: take it in any case.
        """
        with self._lock:
            now = self._clock()
            wait = max((self._since(cost, now) for cost in costs), default=0.0) - now
            if wait > 0 and not must:
                return wait
            for cost in costs:
                begin = max(self._since(cost, now), now - _BURST_SECONDS)
                self._free_at[cost[:2]] = (cost.rate, begin + cost.amount / cost.rate)
            return 0.0

    def _since(self, cost: Cost, now: float) -> float:
        """Return since when a rate is kept, or from when on. A changed rate begins anew."""
        rate, free_at = self._free_at.get(cost[:2], (cost.rate, now - _BURST_SECONDS))
        return free_at if rate == cost.rate else now - _BURST_SECONDS


def limited(what: str, wait_seconds: float) -> RateLimitedError:
    """Return the error for a call that must wait.

    Args:
        what: whose limit it is, and which.
        wait_seconds: until the call would be allowed.
    """
    milliseconds = min(math.ceil(wait_seconds * 1000), _LONGEST_WAIT_MILLISECONDS)
    error = RateLimitedError(f"{what}; try again in {milliseconds / 1000:g} s")
    return with_detail(error, retry_after_milliseconds=milliseconds)
