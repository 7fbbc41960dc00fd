"""Two walks down one valley: plain gradient descent, and `numba_adam.Adam` with a reading of its compasses each step.

May import NumPy, the library and valleys.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

import numba_adam as na
from numba_adam.climb.valleys import Array, Valley
from numba_adam.errors import HyperparameterError

MOST_STEPS = 10_000
_LONGEST = 1e100  # units of the ground; longer steps count as this one, because their squares would be infinite
FARTHEST = 1000.0  # a walk that is farther away than this has left the map, and ends


@dataclass(frozen=True)
class Plan:
    """Where to walk, and how."""

    valley: Valley
    start: tuple[float, float]
    """Where both walks begin: along, across."""
    steps: int
    """How many steps each walk makes."""
    lr: float
    """Adam's learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = 1e-8
    """Adam's eps."""
    eps_mode: Literal["hat", "algorithm1"] = "hat"
    """Where eps goes: "hat" or "algorithm1"."""
    plain_lr: float = 0.1
    """The learning rate of plain gradient descent."""

    def __post_init__(self) -> None:
        """Check what Adam does not check.

        Raises:
            HyperparameterError: a number is out of range.
        """
        if not 1 <= self.steps <= MOST_STEPS:
            raise HyperparameterError(f"steps: expected a whole number in [1, {MOST_STEPS}], got {self.steps!r}")
        if not all(abs(number) <= FARTHEST / 10 for number in self.start):
            reach = f"[-{FARTHEST / 10:g}, {FARTHEST / 10:g}]"
            raise HyperparameterError(f"start: expected two numbers in {reach}, got {self.start!r}")
        if not 0 < self.plain_lr < float("inf"):
            raise HyperparameterError(f"plain-lr: expected a positive number, got {self.plain_lr!r}")


class Reading(NamedTuple):
    """What Adam's compasses show at one step, both corrected for the empty start."""

    step: int
    place: Array  # where the step begins
    momentum: Array  # exp_avg / momentum_share
    terrain: Array  # sqrt(exp_avg_sq) / terrain_share
    momentum_share: float  # 1 - beta1**step: how much of the average slope exp_avg holds
    terrain_share: float  # sqrt(1 - beta2**step): the same of the root of exp_avg_sq
    moved: Array  # what the step adds to the place


class Walk(NamedTuple):
    """The places of one walk, the start first: an array (steps + 1, 2), or fewer if it left the map."""

    places: Array
    readings: tuple[Reading, ...] = ()
    """Adam's, one for each step."""


def walk_plainly(plan: Plan) -> Walk:
    """Return the walk of plain gradient descent."""
    places = [np.array(plan.start)]
    while len(places) <= plan.steps and _is_on_the_map(places[-1]):
        with np.errstate(over="ignore"):
            places.append(places[-1] - plan.plain_lr * plan.valley.slope(places[-1]))
    return Walk(np.array(places[: 1 + plan.steps]))


def walk_with_adam(plan: Plan) -> Walk:
    """Return the walk of `numba_adam.Adam`, and the reading of its compasses at each step.

    Raises:
        HyperparameterError: Adam refuses a hyperparameter.
    """
    place, places, readings = np.array(plan.start), [np.array(plan.start)], []
    optimizer = na.Adam({"place": place}, lr=plan.lr, betas=plan.betas, eps=plan.eps, eps_mode=plan.eps_mode)
    for step in range(1, plan.steps + 1):
        if not _is_on_the_map(place):
            break
        optimizer.step({"place": plan.valley.slope(place)})
        state = optimizer.state["place"]
        momentum_share, terrain_share = 1 - plan.betas[0] ** step, float(np.sqrt(1 - plan.betas[1] ** step))
        momentum, terrain = state["exp_avg"] / momentum_share, np.sqrt(state["exp_avg_sq"]) / terrain_share
        moved = np.clip(place - places[-1], -_LONGEST, _LONGEST)
        readings.append(Reading(step, places[-1], momentum, terrain, momentum_share, terrain_share, moved))
        places.append(place.copy())
    return Walk(np.array(places), tuple(readings))


def _is_on_the_map(place: Array) -> bool:
    return bool(np.abs(place).max() <= FARTHEST)
