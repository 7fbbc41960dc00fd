"""Random gradients without a model: what blocks of 8-bit state find easy, and what they find hard. May import NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.workload import Array

SIZE = 16_384  # parameters: everybody quantises so many
UNTIL_CHANGE = 20  # steps after which gradients vanish
UNTIL_FALL = 100  # steps after which they shrink
TYPICAL = 0.01  # a gradient


class Stream(NamedTuple):
    """Gradients of one kind."""

    name: str
    title: str
    steps: int
    watched: slice = slice(None)  # the parameters whose errors are of interest


STREAMS = (
    Stream("equal", "all gradients of one size", 500),
    Stream("usual", "sizes that differ as they do within a layer (log-normal, 0.5)", 500),
    Stream("decades", "sizes over four decades within a block", 500),
    Stream("rare", "nine of ten gradients are zero, at random", 500),
    Stream("vanish", f"every second gradient is zero after {UNTIL_CHANGE} steps; these", 500, slice(0, None, 2)),
    Stream(
        "fall", f"every second gradient shrinks to a thirtieth after {UNTIL_FALL} steps; these", 2000, slice(0, None, 2)
    ),
)


def gradients(stream: Stream, seed: int) -> Iterator[Array]:
    """Return the gradients of all steps, float32, (SIZE,)."""
    random = np.random.default_rng([seed, STREAMS.index(stream)])
    sizes = _sizes(stream.name, random)
    for step in range(stream.steps):
        grad = random.standard_normal(SIZE) * sizes
        yield (grad * _factors(stream.name, step, random)).astype(np.float32)


def _sizes(name: str, random: np.random.Generator) -> Array:
    """Return a typical gradient for each parameter."""
    if name in ("equal", "fall"):
        return np.full(SIZE, TYPICAL)
    if name == "decades":
        return TYPICAL * 10.0 ** (-4 * random.random(SIZE))
    return TYPICAL * np.exp(random.normal(0, 0.5, SIZE))


def _factors(name: str, step: int, random: np.random.Generator) -> Array:
    """Return what multiplies each gradient of a step."""
    factors = np.ones(SIZE)
    if name == "rare":
        factors[random.random(SIZE) < 0.9] = 0
    if name == "vanish" and step >= UNTIL_CHANGE:
        factors[::2] = 0
    if name == "fall":
        factors[::2] = 0.3 if step < UNTIL_FALL else 0.01
    return factors
