"""Time contestants in turns: A B A B ... May import the standard library and benchmarks.case.

A turn is several calls in a row, so that a call of 30 microseconds can be timed. Each turn begins with a pause and a
few calls that are not timed. In the pause, the other contestant's threads fall asleep: OpenMP's threads spin for some
milliseconds after their last work, on a core that is needed now. The calls wake this contestant's threads and load its
arrays into the caches, as in a program with one optimizer. If one call fills a turn, neither matters.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence

from benchmarks.case import Settings

_SETTLE_SECONDS = 0.01  # libgomp's threads spin for about 5 ms on this kind of machine
_TURN_SECONDS = 0.03
_MOST_CALLS = 300
_MOST_PAIRS = 201
_WARM_UP_CALLS = 3

Step = Callable[[], object]


def _nothing() -> None:
    pass


def interleave(
    ours: Step, peer: Step, settings: Settings, before: tuple[Step, Step] = (_nothing, _nothing)
) -> list[tuple[float, float | None]]:
    """Return seconds per call of both contestants, turn by turn. Both are called equally often.

    Args:
        ours: our step.
        peer: the peer's step.
        settings: how the run is made.
        before: what must happen before each call of ours and of the peer's, and is not timed.
    """
    return [(turn[0], turn[1]) for turn in rotate((ours, peer), settings, before)]


def rotate(steps: Sequence[Step], settings: Settings, before: Sequence[Step] = ()) -> list[tuple[float, ...]]:
    """Return seconds per call of any number of contestants, turn by turn. All are called equally often.

    Args:
        steps: one step of each.
        settings: how the run is made.
        before: for each what must happen before a call, and is not timed; without them nothing does.
    """
    prepared = zip(steps, before or [_nothing] * len(steps), strict=True)
    turns = [functools.partial(_turn, step, prepare) for step, prepare in prepared]
    for _ in range(_WARM_UP_CALLS):  # compile, allocate the state, touch every page
        for turn in turns:
            turn(calls=1)
    slowest = max(min(turn(calls=1) for _ in range(2)) for turn in turns)
    calls = max(1, min(_MOST_CALLS, round(_TURN_SECONDS / slowest)))
    rounds: list[tuple[float, ...]] = []
    begin = time.perf_counter()
    while len(rounds) < settings.fewest_pairs or (
        time.perf_counter() - begin < settings.seconds and len(rounds) < _MOST_PAIRS
    ):
        rounds.append(tuple(turn(calls) for turn in turns))
    return rounds


def _untimed(calls: int) -> int:
    """Return the number of calls that precede the timed calls."""
    return 0 if calls == 1 else 1 + calls // 10


def _turn(step: Step, prepare: Step, calls: int) -> float:
    """Return the mean seconds of `calls` calls in a row."""
    time.sleep(_SETTLE_SECONDS)
    for _ in range(_untimed(calls)):
        prepare()
        step()
    collecting = gc.isenabled()
    gc.disable()  # as timeit does: garbage collection is not part of a step
    try:
        return (_together(step, calls) if prepare is _nothing else _one_by_one(step, prepare, calls)) / calls
    finally:
        if collecting:
            gc.enable()


def _together(step: Step, calls: int) -> float:
    """Return the total seconds of some calls. Read the clock once before and once after."""
    begin = time.perf_counter()
    for _ in range(calls):
        step()
    return time.perf_counter() - begin


def _one_by_one(step: Step, prepare: Step, calls: int) -> float:
    """Return the total seconds of some calls, without their preparation."""
    seconds = 0.0
    for _ in range(calls):
        prepare()
        begin = time.perf_counter()
        step()
        seconds += time.perf_counter() - begin
    return seconds
