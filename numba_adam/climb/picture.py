"""The picture: the map with both walks, the compasses at every step, and the first steps enlarged.

May import NumPy and the other files of this package; matplotlib inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numba_adam.climb import dials
from numba_adam.climb.ground import draw_ground, draw_heading, draw_marks, draw_numbers, draw_walks, readable
from numba_adam.climb.sheet import MARGIN, WIDTH, Sheet, blank, sheet_for
from numba_adam.climb.themes import THEMES, Theme
from numba_adam.climb.walks import Plan, Reading, Walk, walk_plainly, walk_with_adam

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches from the bottom of the page.
_BELOW = 5.75  # the bottom of the map
_STRIP_TITLE = 5.47
_STRIP = (5.06, 4.6, 4.18)  # the centres of the small compasses
_FIRST_TITLE = 3.52
_ROWS = (2.7, 1.7, 0.7)  # the centres of the large ones
_RADIUS = 0.33
_COLUMNS = (2.15, 3.1, 4.05, 5.0, 5.95)
_MOST_IN_STRIP = 36


class Labels(NamedTuple):
    """The words and the colour of one row."""

    name: str
    meaning: str
    drawn: str
    colour: str


def labels(theme: Theme) -> tuple[Labels, Labels, Labels]:
    """Return the words of the three rows: the two compasses, and the step that results."""
    return (
        Labels("momentum compass", "where we've been", "needle: \N{MINUS SIGN}exp_avg", theme.adam),
        Labels("terrain compass", "how bumpy the road is", "ellipse: \N{SQUARE ROOT}exp_avg_sq", theme.terrain),
        Labels("the step", "needle \N{DIVISION SIGN} ellipse", "\N{MULTIPLICATION SIGN} learning rate", theme.ink),
    )


def draw(plan: Plan, path: Path, theme_name: str = "light") -> tuple[Walk, Walk]:
    """Write the picture to `path` and return the two walks. The suffix selects the format: .png, .svg or .pdf.

    An SVG file has no background of its own.

    Args:
        plan: where to walk, and how.
        path: the file to write.
        theme_name: "light" or "dark".

    Raises:
        HyperparameterError: Adam refuses a hyperparameter.
        OSError: the file cannot be written.
    """
    import matplotlib

    theme = THEMES[theme_name]
    walks = walk_plainly(plan), walk_with_adam(plan)
    sheet = sheet_for(plan, walks, _BELOW)
    # Text stays text. Without a salt of our own, every file would have other ids. Every place of a walk is kept.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "climb", "path.simplify": False, "text.color": theme.ink}
    with matplotlib.rc_context(style):
        is_svg = path.suffix.lower() == ".svg"
        figure, axes = blank(sheet, theme, is_opaque=not is_svg)
        frame = draw_ground(axes, sheet, theme, plan.valley)
        draw_walks(axes, sheet, theme, frame, walks)
        draw_numbers(axes, sheet, theme, plan.valley, walks[1])
        draw_marks(axes, sheet, theme, plan, frame)
        draw_heading(axes, sheet, theme, plan, walks)
        if walks[1].readings:
            _draw_strip(axes, theme, walks[1].readings)
            _draw_first_steps(axes, theme, walks[1].readings[: len(_COLUMNS)])
            _draw_shares(figure, sheet, theme, walks[1].readings)
        metadata: Any = {"Title": "Gradient descent and Adam walk down a valley, with Adam's two compasses"}
        figure.savefig(path, dpi=150, metadata=metadata | ({"Date": None} if is_svg else {}))
    return walks


def spread(readings: Sequence[Reading], most: int) -> list[Reading]:
    """Return at most so many readings, evenly spread, the first and the last among them."""
    count = min(most, len(readings))
    return [readings[index] for index in np.linspace(0, len(readings) - 1, count).round().astype(int)]


def _draw_strip(axes: Axes, theme: Theme, readings: Sequence[Reading]) -> None:
    """Draw both compasses and the step, small, at every step: time goes from left to right."""
    shown = spread(readings, _MOST_IN_STRIP)
    every = "every step" if len(shown) == len(readings) else f"{len(shown)} of {len(readings)} steps"
    title = f"The two compasses at {every}, corrected for the empty start"
    axes.text(MARGIN, _STRIP_TITLE, title, fontsize=10.5, weight="bold", va="center")
    left, right = 1.75, WIDTH - MARGIN
    gap = (right - left) / max(len(shown), 12)
    radius = min(0.46 * gap, 0.16)
    scale = dials.terrain_scale(shown, (0.48 * gap, 0.22))
    stride = dials.step_scale(shown, 2 * radius)
    for height, row in zip(_STRIP, labels(theme), strict=True):
        axes.text(MARGIN, height + 0.08, row.name, fontsize=8.5, weight="bold", color=row.colour, va="center")
        axes.text(MARGIN, height - 0.09, row.meaning, fontsize=7.5, color=theme.faint, va="center")
    for column, reading in enumerate(shown):
        x = left + (column + 0.5) * gap
        needle, step = radius * dials.towards(-reading.momentum), stride * reading.moved
        centres = [np.array([x, height]) for height in _STRIP]
        dials.arrow(axes, centres[0] - needle, centres[0] + needle, colour=theme.adam, width=1.2)
        radii = scale * reading.terrain
        dials.draw_ellipse(axes, centres[1], radii, colour=theme.terrain, alpha=0.8, linewidth=0)
        dials.arrow(axes, centres[2] - step / 2, centres[2] + step / 2, colour=theme.ink, width=1.2)
        if column % 5 == 4 or column == 0:
            axes.text(x, _STRIP[2] - 0.24, str(reading.step), fontsize=8, ha="center", va="center", color=theme.faint)


def _draw_first_steps(axes: Axes, theme: Theme, readings: Sequence[Reading]) -> None:
    """Draw the dials of the first steps: what each compass holds, and what the bias correction adds."""
    title = "The first steps: solid is what a compass holds, pale is what bias correction adds"
    axes.text(MARGIN, _FIRST_TITLE, title, fontsize=10.5, weight="bold", va="center")
    for height, row in zip(_ROWS, labels(theme), strict=True):
        axes.text(MARGIN, height + 0.2, row.name, fontsize=9, weight="bold", color=row.colour, va="center")
        axes.text(MARGIN, height, row.meaning, fontsize=8.5, va="center")
        axes.text(MARGIN, height - 0.18, row.drawn, fontsize=8.5, va="center")
    axes.text(MARGIN, _ROWS[2] - 0.36, "dotted: not corrected", fontsize=8.5, va="center", color=theme.faint)
    scale = dials.terrain_scale(readings, (_RADIUS, _RADIUS))
    stride = dials.step_scale(readings, _RADIUS) * min(_uncorrected(reading) for reading in readings)
    for x, reading in zip(_COLUMNS, readings, strict=False):
        centres = [np.array([x, height]) for height in _ROWS]
        for centre in centres:
            dials.draw_dial(axes, theme, centre, _RADIUS)
        needle = _RADIUS * dials.towards(-reading.momentum)
        names = (f"momentum-{reading.step}", f"terrain-{reading.step}", f"step-{reading.step}")
        dials.draw_momentum(axes, centres[0], needle, reading.momentum_share, colour=theme.adam, gid=names[0])
        radii = scale * reading.terrain
        dials.draw_terrain(axes, centres[1], radii, reading.terrain_share, colour=theme.terrain, gid=names[1])
        whole = stride * reading.moved
        dials.draw_step(axes, centres[2], whole, 1 / _uncorrected(reading), theme, gid=names[2])
        for centre, words in zip(centres, _captions(reading), strict=True):
            axes.text(x, centre[1] - _RADIUS - 0.12, words, fontsize=8, ha="center", va="center")
        axes.text(x, _ROWS[0] + _RADIUS + 0.13, f"step {reading.step}", fontsize=9, weight="bold", ha="center")


def _uncorrected(reading: Reading) -> float:
    """Return the length of the corrected step in lengths of a step without correction."""
    return reading.terrain_share / reading.momentum_share


def _captions(reading: Reading) -> tuple[str, str, str]:
    """Return what stands under the three dials of one step."""
    shares = (reading.momentum_share, reading.terrain_share)
    first, second = (f"{readable(100 * share)} % \N{MULTIPLICATION SIGN} {readable(1 / share)}" for share in shares)
    return first, second, f"dotted: {readable(1 / _uncorrected(reading))} \N{MULTIPLICATION SIGN}"


def _draw_shares(figure: Figure, sheet: Sheet, theme: Theme, readings: Sequence[Reading]) -> None:
    """Draw how much of the true average each compass holds, over the steps."""
    from matplotlib.ticker import MaxNLocator

    left, bottom, width, height = 7.1, 0.6, 2.7, 2.35
    axes = figure.add_axes((left / WIDTH, bottom / sheet.height, width / WIDTH, height / sheet.height))
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(colors=theme.faint, labelsize=8)
    axes.axhline(100, color=theme.faint, linewidth=0.8, linestyle=":")
    steps = [reading.step for reading in readings]
    curves = (
        ("momentum: 1 \N{MINUS SIGN} beta1\N{MODIFIER LETTER SMALL T}", "momentum_share", theme.adam),
        ("terrain: \N{SQUARE ROOT}(1 \N{MINUS SIGN} beta2\N{MODIFIER LETTER SMALL T})", "terrain_share", theme.terrain),
    )
    for words, share, colour in curves:
        shares = np.array([100 * getattr(reading, share) for reading in readings])
        axes.plot(steps, shares, "o-", color=colour, markersize=2.5, linewidth=1.4, gid=f"curve-{share}", label=words)
    axes.set(ylim=(0, 108), xlim=(0, max(steps) + 1), yticks=(0, 50, 100), yticklabels=("0", "50 %", "100 %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("What each compass holds of its average", fontsize=8.5, weight="bold", color=theme.ink, loc="left")
    axes.set_xlabel("step", fontsize=8.5, color=theme.faint)
    axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", loc="center right")
