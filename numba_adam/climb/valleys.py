"""The valleys that have a name: the height at a place, and its slope.

A place is an array of two float64 numbers: along, across. May import NumPy and numba_adam.errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_adam.errors import HyperparameterError

Array = npt.NDArray[np.float64]


class Shape(NamedTuple):
    """A valley before it is turned: its functions, and the settings that show it well."""

    summary: str
    height: Callable[[Array, Array, float], Array]
    """The height at (along, across), with the steepness as the third argument."""
    slope: Callable[[float, float, float], tuple[float, float]]
    """The gradient of the height, with the same arguments."""
    steepness: float
    """The default of the third argument."""
    start: tuple[float, float]
    lowest: tuple[float, float]
    adam_lr: float
    plain_lr: Callable[[float], float]
    """The learning rate of plain gradient descent that suits a steepness."""
    steps: int


def _ravine(x: Array, y: Array, s: float) -> Array:
    return (x * x + s * y * y) / 2


def _ravine_slope(x: float, y: float, s: float) -> tuple[float, float]:
    return x, s * y


def _banana(x: Array, y: Array, s: float) -> Array:
    return (1 - x) ** 2 + s * (y - x * x) ** 2


def _banana_slope(x: float, y: float, s: float) -> tuple[float, float]:
    return -2 * (1 - x) - 4 * s * x * (y - x * x), 2 * s * (y - x * x)


def _bumps(x: Array, y: Array, s: float) -> Array:
    return (x * x + y * y) / 20 + s * (2 - np.cos(3 * x) - np.cos(3 * y))


def _bumps_slope(x: float, y: float, s: float) -> tuple[float, float]:
    return x / 10 + 3 * s * math.sin(3 * x), y / 10 + 3 * s * math.sin(3 * y)


def _plateau(x: Array, y: Array, s: float) -> Array:
    return s * (1 - np.exp(-(x * x + 4 * y * y) / 8))


def _plateau_slope(x: float, y: float, s: float) -> tuple[float, float]:
    fall = s * math.exp(-(x * x + 4 * y * y) / 8)
    return fall * x / 4, fall * y


def _saddle(x: Array, y: Array, s: float) -> Array:
    return s * x * x / 2 - y * y / 2 + y**4 / 4


def _saddle_slope(x: float, y: float, s: float) -> tuple[float, float]:
    return s * x, y**3 - y


SHAPES = {
    # Gradient descent on a quadratic with curvatures 1 and s shrinks fastest, in the worst direction, with 2 / (1 + s).
    "ravine": Shape(
        "steep across, almost flat along (a quadratic; --steepness: how much more curved across)",
        _ravine,
        _ravine_slope,
        50.0,
        (-9.0, 1.5),
        (0.0, 0.0),
        0.3,
        lambda s: 2 / (1 + s),
        36,
    ),
    "banana": Shape(
        "a bent ravine, Rosenbrock's (--steepness: the weight of the bend)",
        _banana,
        _banana_slope,
        5.0,
        (-1.6, 1.4),
        (1.0, 1.0),
        0.2,
        lambda s: 0.08 / s,
        100,
    ),
    "bumps": Shape(
        "a bowl with small dips on its way down (--steepness: their depth)",
        _bumps,
        _bumps_slope,
        0.1,
        (-6.5, 2.6),
        (0.0, 0.0),
        0.4,
        lambda s: 1 / (0.1 + 9 * s),
        60,
    ),
    "plateau": Shape(
        "a hole in flat ground, where slopes are tiny (--steepness: its depth)",
        _plateau,
        _plateau_slope,
        1.0,
        (-6.5, 1.2),
        (0.0, 0.0),
        0.25,
        lambda s: 1 / s,
        60,
    ),
    "saddle": Shape(
        "a pass between two hollows, entered almost on its line (--steepness: its curvature along)",
        _saddle,
        _saddle_slope,
        1.0,
        (-2.4, 0.001),
        (0.0, 1.0),
        0.15,
        lambda s: 0.1 / max(s, 1.0),
        40,
    ),
}


@dataclass(frozen=True)
class Valley:
    """One of `SHAPES`, with a steepness, turned by an angle around (0, 0)."""

    name: str
    """The name in `SHAPES`."""
    steepness: float
    """The number that the shape's summary explains."""
    angle_degrees: float
    """How far the valley is turned, counter-clockwise."""

    @property
    def shape(self) -> Shape:
        """The functions and defaults of this valley."""
        return SHAPES[self.name]

    def height(self, places: Array) -> Array:
        """Return the heights at places, an array (..., 2)."""
        with np.errstate(over="ignore", invalid="ignore"):
            turned = places @ self._turn
            return np.asarray(self.shape.height(turned[..., 0], turned[..., 1], self.steepness))

    def slope(self, place: Array) -> Array:
        """Return the gradient of `height` at one place."""
        along, across = (float(each) for each in place @ self._turn)
        return np.asarray(self._turn @ np.array(self.shape.slope(along, across, self.steepness)))

    def turned(self, place: tuple[float, float]) -> Array:
        """Return where a place of the shape lies in this valley."""
        return np.asarray(self._turn @ np.array(place))

    @property
    def lowest(self) -> Array:
        """The lowest place."""
        return self.turned(self.shape.lowest)

    @property
    def start(self) -> Array:
        """The place where walks begin unless another one is given."""
        return self.turned(self.shape.start)

    @property
    def plain_lr(self) -> float:
        """The learning rate of plain gradient descent unless another one is given."""
        return self.shape.plain_lr(self.steepness)

    @property
    def _turn(self) -> Array:
        turn = math.radians(self.angle_degrees)
        return np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


def valley(name: str, steepness: float | None = None, angle_degrees: float = 0.0) -> Valley:
    """Return a valley by its name.

    Raises:
        HyperparameterError: an unknown name, or a number that is out of range.

    >>> valley("ravine").slope(np.array([-9.0, 1.5]))
    array([-9., 75.])
    """
    if name not in SHAPES:
        raise HyperparameterError(f"valley: expected one of {', '.join(SHAPES)}, got {name!r}")
    chosen = SHAPES[name].steepness if steepness is None else steepness
    if not 1e-3 <= chosen <= 1e4:
        raise HyperparameterError(f"steepness: expected a number in [0.001, 10000], got {chosen!r}")
    if not -360 <= angle_degrees <= 360:
        raise HyperparameterError(f"angle: expected degrees in [-360, 360], got {angle_degrees!r}")
    return Valley(name, float(chosen), float(angle_degrees))
