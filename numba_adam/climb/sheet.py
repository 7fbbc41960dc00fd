"""Where things are drawn: a page measured in inches from its lower left corner, and the places of a valley on it.

May import NumPy, walks.py and themes.py; matplotlib inside the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from numba_adam.climb.themes import Theme
from numba_adam.climb.valleys import Array
from numba_adam.climb.walks import Plan, Walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
MARGIN = 0.1
TOP = 0.92  # above the map: the title, and a line for each walk
_MAP_WIDTH = WIDTH - 2 * MARGIN
_MAP_HEIGHTS = (2.9, 4.4)
_BORDER = 0.14  # of each side of what must be seen
_LEAST = 0.5  # units of the ground: no map shows less
_REACH = 1.5  # of the way from the start to the lowest place: a walk that goes farther leaves the map


@dataclass(frozen=True)
class Sheet:
    """A page with a map at its top. One unit of the ground has the same length along and across."""

    middle: tuple[float, float]
    """The place in the middle of the map."""
    unit: float
    """The inches of one unit of the ground."""
    map_height: float
    """The inches of the map from bottom to top; its width is that of the page."""
    below: float
    """The inches below the map."""

    @property
    def height(self) -> float:
        """The inches of the page from bottom to top."""
        return self.below + self.map_height + TOP

    @property
    def map_box(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the map."""
        return MARGIN, self.below, _MAP_WIDTH, self.map_height

    def at(self, places: Array) -> Array:
        """Return where places of the ground are drawn, an array (..., 2) of inches."""
        centre = (WIDTH / 2, self.below + self.map_height / 2)
        return np.asarray(centre + self.unit * (places - self.middle))

    def ground(self, inches: Array) -> Array:
        """Return the places that are drawn there: the inverse of `at`."""
        centre = (WIDTH / 2, self.below + self.map_height / 2)
        return np.asarray(self.middle + (inches - centre) / self.unit)

    def has_on_map(self, place: Array) -> bool:
        """Return whether a place is within the map."""
        (left, bottom, width, height), (x, y) = self.map_box, self.at(place)
        return bool(left <= x <= left + width and bottom <= y <= bottom + height)


def sheet_for(plan: Plan, walks: tuple[Walk, ...], below: float) -> Sheet:
    """Return a page whose map shows the start, the lowest place, and the walks where they do not go astray."""
    ends = np.array([plan.start, plan.valley.lowest])
    reach = _REACH * max(float(np.ptp(ends, axis=0).max()), _LEAST)
    places = np.concatenate([ends, *(walk.places for walk in walks)])
    seen = places[np.abs(places - ends.mean(axis=0)).max(axis=1) <= reach]
    low, high = seen.min(axis=0), seen.max(axis=0)
    wide, tall = np.maximum((high - low) * (1 + 2 * _BORDER), _LEAST)
    least, most = (height / _MAP_WIDTH for height in _MAP_HEIGHTS)
    shape = min(max(tall / wide, least), most)
    wide = max(wide, tall / shape)
    x, y = (low + high) / 2
    return Sheet((float(x), float(y)), float(_MAP_WIDTH / wide), float(_MAP_WIDTH * shape), below)


def blank(sheet: Sheet, theme: Theme, *, is_opaque: bool, dpi: float = 100) -> tuple[Figure, Axes]:
    """Return an empty page, and the axes that cover it: their unit is the inch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, sheet.height), dpi=dpi, facecolor=theme.page if is_opaque else "none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(0, sheet.height))
    return figure, axes
