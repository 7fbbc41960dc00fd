"""The film: both walks grow step by step, with the two compasses of each step large beside them.

May import NumPy and the other files of this package; matplotlib inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_adam.climb import dials
from numba_adam.climb.ground import draw_ground, draw_heading, draw_marks, draw_walks, readable
from numba_adam.climb.picture import Labels, labels, spread
from numba_adam.climb.sheet import blank, sheet_for
from numba_adam.climb.themes import THEMES, Theme
from numba_adam.climb.walks import Plan, Reading, Walk, walk_plainly, walk_with_adam

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_FRAMES = 120
FRAMES_PER_SECOND = 5
_PAUSE = 12  # frames at the end
_DPI = 80
# Inches from the lower left corner.
_BELOW = 2.35
_CENTRES = ((1.05, 1.02), (3.15, 1.02), (5.25, 1.02))
_RADIUS = 0.68
_BARS = (7.05, 2.7, 0.2)  # left, width, height
_ROWS = (1.22, 0.5)  # of the bars


def film(plan: Plan, path: Path, theme_name: str = "light") -> tuple[Walk, Walk]:
    """Write the film to `path`, a .gif file, and return the two walks.

    It has a frame for each step of Adam; of a long walk, every second or third step, and so on.

    Args:
        plan: where to walk, and how.
        path: the file to write.
        theme_name: "light" or "dark".

    Raises:
        HyperparameterError: Adam refuses a hyperparameter.
        OSError: the file cannot be written.
    """
    from matplotlib.animation import PillowWriter

    theme = THEMES[theme_name]
    walks = walk_plainly(plan), walk_with_adam(plan)
    sheet = sheet_for(plan, walks, _BELOW)
    figure, axes = blank(sheet, theme, is_opaque=True, dpi=_DPI)
    frame = draw_ground(axes, sheet, theme, plan.valley)
    draw_marks(axes, sheet, theme, plan, frame)
    draw_heading(axes, sheet, theme, plan, walks)
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    kept = set(axes.get_children())
    with writer.saving(figure, str(path), _DPI):
        shown = spread(walks[1].readings, MOST_FRAMES)
        for reading in shown:
            _clear(axes, kept)
            draw_walks(axes, sheet, theme, frame, (_until(walks[0], reading.step), _until(walks[1], reading.step)))
            _draw_compasses(axes, theme, reading, walks[1].readings)
            _draw_shares(axes, theme, reading, plan)
            for _ in range(_PAUSE if reading is shown[-1] else 1):
                writer.grab_frame()
    return walks


def _clear(axes: Axes, kept: set[Any]) -> None:
    """Remove what the frame before has drawn."""
    for artist in set(axes.get_children()) - kept:
        artist.remove()


def _until(walk: Walk, step: int) -> Walk:
    return Walk(walk.places[: step + 1], walk.readings[:step])


def _draw_compasses(axes: Axes, theme: Theme, reading: Reading, readings: Sequence[Reading]) -> None:
    """Draw three large dials: the two compasses, and the step that results."""
    scale = dials.terrain_scale(readings, (_RADIUS, _RADIUS))
    stride = dials.step_scale(readings, _RADIUS)
    centres = [np.array(centre) for centre in _CENTRES]
    numbers = (-reading.momentum, reading.terrain, reading.moved)
    for centre, row, pair in zip(centres, labels(theme), numbers, strict=True):
        dials.draw_dial(axes, theme, centre, _RADIUS)
        _draw_words(axes, theme, centre, row, pair)
    needle = _RADIUS * dials.towards(-reading.momentum)
    dials.draw_momentum(axes, centres[0], needle, reading.momentum_share, colour=theme.adam, gid="momentum")
    radii, share = scale * reading.terrain, reading.terrain_share
    dials.draw_terrain(axes, centres[1], radii, share, colour=theme.terrain, gid="terrain")
    dials.arrow(axes, centres[2], centres[2] + stride * reading.moved, colour=theme.ink, width=2.4)


def _draw_words(axes: Axes, theme: Theme, centre: Any, row: Labels, pair: Any) -> None:
    """Write the name of a dial above it, and its two numbers below."""
    style: Any = {"ha": "center", "va": "center"}
    x, y = centre
    axes.text(x, y + _RADIUS + 0.38, row.name, fontsize=10, weight="bold", color=row.colour, **style)
    axes.text(x, y + _RADIUS + 0.18, row.meaning, fontsize=9, color=theme.faint, **style)
    axes.text(x, y - _RADIUS - 0.17, ", ".join(map(readable, pair)), fontsize=9, color=theme.ink, **style)


def _draw_shares(axes: Axes, theme: Theme, reading: Reading, plan: Plan) -> None:
    """Draw two bars: how much of its average each compass holds, and what corrects it."""
    from matplotlib.patches import Rectangle

    left, width, height = _BARS
    title = f"step {reading.step} of {plan.steps}"
    axes.text(left, _BELOW - 0.28, title, fontsize=13, weight="bold", color=theme.ink, va="center")
    axes.text(left, _BELOW - 0.55, "Each compass began at zero. It holds:", fontsize=9, color=theme.faint, va="center")
    rows = zip(labels(theme)[:2], (reading.momentum_share, reading.terrain_share), _ROWS, strict=True)
    for row, share, y in rows:
        words = f"{readable(100 * share)} % of its average, so \N{MULTIPLICATION SIGN} {readable(1 / share)}"
        axes.text(left, y + 0.34, row.name, fontsize=9, weight="bold", color=row.colour, va="center")
        axes.add_patch(Rectangle((left, y), width, height, facecolor=row.colour, alpha=0.22, linewidth=0))
        axes.add_patch(Rectangle((left, y), share * width, height, facecolor=row.colour, linewidth=0))
        axes.text(left, y - 0.15, words, fontsize=9, color=theme.ink, va="center")
