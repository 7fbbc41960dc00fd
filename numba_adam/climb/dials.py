"""One compass at one step: the needle of the momentum, the ellipse of the terrain, and what bias correction adds.

The full shape is the corrected compass. The strong part of it is what the compass holds: the recorded average, which
began at zero. May import NumPy; matplotlib inside the functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_adam.climb.themes import Theme
from numba_adam.climb.valleys import Array
from numba_adam.climb.walks import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = 0.35  # opacity of what the correction adds


def draw_dial(axes: Axes, theme: Theme, centre: Array, radius: float) -> None:
    """Draw an empty dial: a circle with eight marks."""
    from matplotlib.patches import Circle

    x, y = (float(each) for each in centre)
    axes.add_patch(Circle((x, y), radius, facecolor=theme.face, edgecolor=theme.faint, linewidth=0.8))
    angles = np.arange(8) * np.pi / 4
    radii = radius * np.array([[0.9], [1.0], [np.nan]])  # a dash from the first to the second, and a gap
    marks = x + radii * np.cos(angles), y + radii * np.sin(angles)
    axes.plot(*(each.T.ravel() for each in marks), color=theme.faint, linewidth=0.8)


def arrow(axes: Axes, tail: Array, tip: Array, *, colour: str, width: float = 1.6, **style: Any) -> None:
    """Draw an arrow; one that is too short for a head is a line."""
    from matplotlib.patches import FancyArrowPatch

    length = float(np.hypot(*(tip - tail)))
    head = min(5 * width, 72 * length)
    shape: Any = {"arrowstyle": "-|>" if length > 0.03 else "-", "mutation_scale": head, "shrinkA": 0, "shrinkB": 0}
    begin, end = (float(tail[0]), float(tail[1])), (float(tip[0]), float(tip[1]))
    axes.add_patch(FancyArrowPatch(begin, end, color=colour, linewidth=width, **shape | style))


def towards(way: Array) -> Array:
    """Return the direction of a vector, or zeros if it has none."""
    length = float(np.hypot(*way))
    return way / length if length > 0 else np.zeros(2)


def draw_momentum(axes: Axes, centre: Array, way: Array, share: float, *, colour: str, gid: str) -> None:
    """Draw the needle: `way` is its corrected tip from the centre, and `share` how much of it is recorded."""
    arrow(axes, centre, centre + way, colour=colour, alpha=PALE, gid=gid)
    axes.plot(*np.transpose([centre, centre + share * way]), color=colour, linewidth=3, solid_capstyle="round")


def draw_terrain(axes: Axes, centre: Array, radii: Array, share: float, *, colour: str, gid: str) -> None:
    """Draw the ellipse: `radii` are its corrected ones, and `share` how much of them is recorded."""
    draw_ellipse(axes, centre, radii, colour=colour, alpha=PALE, linewidth=0, gid=gid)
    draw_ellipse(axes, centre, share * radii, colour=colour, linewidth=1.2)


def draw_ellipse(axes: Axes, centre: Array, radii: Array, *, colour: str, **style: Any) -> None:
    """Draw a filled ellipse with these two radii."""
    from matplotlib.patches import Ellipse

    axes.add_patch(Ellipse((float(centre[0]), float(centre[1])), *(2 * radii), color=colour, **style))


def draw_step(axes: Axes, centre: Array, way: Array, lengthening: float, theme: Theme, *, gid: str) -> None:
    """Draw the step as a line, and dotted how long it would be without correction."""
    axes.plot(*np.transpose([centre, centre + lengthening * way]), ":", color=theme.faint, linewidth=1.4)
    axes.plot(*np.transpose([centre, centre + way]), color=theme.ink, linewidth=3, solid_capstyle="round", gid=gid)


def terrain_scale(readings: Sequence[Reading], room: tuple[float, float]) -> float:
    """Return the inches of one unit of slope, so that every ellipse fits into these radii."""
    largest = np.max([reading.terrain for reading in readings], axis=0)
    return float(np.min(np.array(room) / np.maximum(largest, 1e-300)))


def step_scale(readings: Sequence[Reading], room: float) -> float:
    """Return the inches of one unit of the ground, so that no step is longer than `room`."""
    largest = max(float(np.abs(reading.moved).max()) for reading in readings)
    return room / math.sqrt(2) / max(largest, 1e-300)
