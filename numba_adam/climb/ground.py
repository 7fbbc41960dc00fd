"""The valley seen from above, and the walks on it.

May import NumPy, and the files of this package that picture.py lists before it; matplotlib inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from numba_adam.climb.sheet import MARGIN, Sheet
from numba_adam.climb.themes import Theme
from numba_adam.climb.valleys import Array, Valley
from numba_adam.climb.walks import Plan, Walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = 13
_GRID_PER_INCH = 15
_BIG = 7.0  # points; the ends of a walk
_FAR = 1000.0  # inches: beyond, a walk is off the page anyway
_APART = 0.5  # inches between the numbers on a walk


def draw_ground(axes: Axes, sheet: Sheet, theme: Theme, valley: Valley) -> Any:
    """Fill the map with bands of height, and return its frame, which cuts off what is drawn beyond it."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import FancyBboxPatch

    left, bottom, width, height = sheet.map_box
    style: Any = {"boxstyle": "round,pad=0,rounding_size=0.12", "edgecolor": "none"}
    frame = axes.add_patch(FancyBboxPatch((left, bottom), width, height, facecolor=theme.ground[0], **style))
    # One cell more on each side: the edges of the outermost bands lie beyond the frame.
    cell = 1 / _GRID_PER_INCH
    x = np.linspace(left - cell, left + width + cell, int(width / cell) + 3)
    y = np.linspace(bottom - cell, bottom + height + cell, int(height / cell) + 3)
    heights = valley.height(sheet.ground(np.stack(np.meshgrid(x, y), axis=-1)))
    # The root of the height is almost linear around a lowest place, so its contours are smooth there.
    climb = np.sqrt(heights - min(heights.min(), float(valley.height(valley.lowest))))
    levels = _levels(climb)
    colours = LinearSegmentedColormap.from_list("ground", theme.ground[::-1])(np.linspace(0, 1, len(levels) - 1))
    bands = axes.contourf(x, y, climb, levels=levels, colors=list(colours))
    bands.set(edgecolor=theme.contour, linewidth=0.25, clip_path=frame)
    return frame


def _levels(climb: Array) -> Array:
    """Return the borders of the bands: each band covers about the same area, and the lowest ones a little less."""
    shares = np.linspace(0, 1, _LEVELS + 1) ** 1.3
    levels = np.unique(np.quantile(climb, shares))
    levels[-1] = np.nextafter(levels[-1], np.inf)
    return levels if len(levels) > 1 else np.array([levels[0], levels[0] + 1])


def draw_walk(axes: Axes, sheet: Sheet, walk: Walk, frame: Any, *, colour: str, width: float, gid: str) -> None:
    """Draw a walk with a dot at the end of each step. A test finds its line by `gid`."""
    points = np.clip(sheet.at(walk.places), -_FAR, _FAR)
    style: Any = {"color": colour, "clip_path": frame}
    axes.plot(*points.T, linewidth=width, solid_joinstyle="round", gid=gid, **style)
    if len(points) <= 200:
        axes.plot(*points.T, "o", markersize=1.6 * width, markeredgewidth=0, **style)
    axes.plot(*points[-1], "o", markersize=_BIG, markeredgewidth=0, **style)


def draw_walks(axes: Axes, sheet: Sheet, theme: Theme, frame: Any, walks: tuple[Walk, Walk]) -> None:
    """Draw both walks, Adam's above."""
    plain, adam = walks
    draw_walk(axes, sheet, plain, frame, colour=theme.plain, width=1.1, gid="gradient-descent")
    draw_walk(axes, sheet, adam, frame, colour=theme.adam, width=2.2, gid="adam")


def draw_marks(axes: Axes, sheet: Sheet, theme: Theme, plan: Plan, frame: Any) -> None:
    """Mark the start and the lowest place."""
    start, lowest = sheet.at(np.array(plan.start)), sheet.at(plan.valley.lowest)
    axes.plot(*start, "o", color=theme.ink, markersize=_BIG)
    axes.plot(*lowest, "*", color=theme.ink, markersize=_BIG + 3, markeredgewidth=0, clip_path=frame)
    style: Any = {"fontsize": 9.5, "va": "center", "color": theme.ink}
    side = 1 if start[0] > lowest[0] else -1
    axes.text(start[0] + 0.13 * side, start[1], "start", ha="left" if side > 0 else "right", **style)
    if sheet.has_on_map(plan.valley.lowest):
        axes.text(lowest[0], lowest[1] + 0.2, "lowest point", ha="center", **style)


def draw_numbers(axes: Axes, sheet: Sheet, theme: Theme, valley: Valley, walk: Walk) -> None:
    """Write the number of some steps beside Adam's line."""
    every = _every(len(walk.readings))
    taken = [sheet.at(valley.lowest) + np.array([0, 0.2])]
    for reading in walk.readings[every::every]:
        ahead = reading.moved / max(float(np.hypot(*reading.moved)), 1e-12)
        spot = sheet.at(reading.place) + 0.17 * np.array([-ahead[1], ahead[0]])
        if sheet.has_on_map(sheet.ground(spot)) and all(np.hypot(*(spot - other)) > _APART for other in taken):
            taken.append(spot)
            style: Any = {"fontsize": 8, "ha": "center", "va": "center", "color": theme.adam, "weight": "bold"}
            axes.text(float(spot[0]), float(spot[1]), str(reading.step - 1), **style)


def _every(count: int) -> int:
    """Return the round number that gives at most six marks."""
    rounds = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    return next(each for each in (*rounds, count) if count <= 7 * each)


def draw_heading(axes: Axes, sheet: Sheet, theme: Theme, plan: Plan, walks: tuple[Walk, Walk]) -> None:
    """Write the title, and a line for each walk in its colour."""
    top = sheet.height
    title = f"Two walks of {plan.steps} steps down one valley: the {plan.valley.name}"
    style: Any = {"va": "center"}
    axes.text(MARGIN, top - 0.2, title, fontsize=12, weight="bold", color=theme.ink, **style)
    named = (
        ("Plain gradient descent", plan.plain_lr, walks[0], theme.plain),
        ("Adam", plan.lr, walks[1], theme.adam),
    )
    for line, (name, lr, walk, colour) in enumerate(named):
        heights = plan.valley.height(walk.places[[0, -1]])
        outcome = f"from height {readable(heights[0])} to {readable(heights[1])}"
        if len(walk.places) <= plan.steps:
            outcome = f"leaves the map at step {len(walk.places) - 1}"
        words = f"{name}, learning rate {readable(lr)}: {outcome}"
        axes.text(MARGIN, top - 0.48 - 0.22 * line, words, fontsize=10, weight="bold", color=colour, **style)


def readable(number: float) -> str:
    """Return a number with two digits, or more before the point.

    >>> readable(0.0392156), readable(96.75), readable(3.14159), readable(12345.6), readable(0)
    ('0.039', '97', '3.1', '12346', '0')
    """
    text = f"{number:.2g}" if abs(number) < 10 or abs(number) >= 1e6 else f"{number:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
