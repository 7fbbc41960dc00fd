"""Taking turns: A B A B ..., timed. Imports the standard library and the records of `case`.

A turn is a number of calls in a row, so that a call of 30 microseconds is timed well. Before each turn the other
contestant's threads get a moment to fall asleep (OpenMP's spin for some milliseconds after their last work, on a core
that is needed now), and a few calls are made without being timed: they wake this contestant's threads and bring its
arrays back into the caches, as in a program that has one optimizer. Where one call fills a turn, neither matters.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from benchmarks.case import Settings

_SETTLE_SECONDS = 0.01  # libgomp's threads spin for about 5 ms on this kind of machine
_TURN_SECONDS = 0.03
_MOST_CALLS = 300
_MOST_PAIRS = 201
_WARM_UP_CALLS = 3

Step = Callable[[], object]


def interleave(ours: Step, peer: Step, settings: Settings) -> list[tuple[float, float | None]]:
    """Return seconds per call of both contestants, turn by turn; both are called equally often."""
    for _ in range(_WARM_UP_CALLS):  # compiles, allocates state, touches every page
        ours()
        peer()
    slower = max(min(_turn(step, calls=1) for _ in range(2)) for step in (ours, peer))
    calls = max(1, min(_MOST_CALLS, round(_TURN_SECONDS / slower)))
    pairs: list[tuple[float, float | None]] = []
    begin = time.perf_counter()
    while len(pairs) < settings.fewest_pairs or (
        time.perf_counter() - begin < settings.seconds and len(pairs) < _MOST_PAIRS
    ):
        pairs.append((_turn(ours, calls), _turn(peer, calls)))
    return pairs


def _untimed(calls: int) -> int:
    """Return the number of calls before those that are timed."""
    return 0 if calls == 1 else 1 + calls // 10


def _turn(step: Step, calls: int) -> float:
    """Return the mean seconds of `calls` calls in a row."""
    time.sleep(_SETTLE_SECONDS)
    for _ in range(_untimed(calls)):
        step()
    collecting = gc.isenabled()
    gc.disable()  # as timeit does: collecting the garbage of a harness is no part of a step
    try:
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - begin) / calls
    finally:
        if collecting:
            gc.enable()
