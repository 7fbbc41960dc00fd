"""Draw the picture of docs/how-adam-works.md: two walks down one ravine, and Adam's two compasses on the way.

    python tools/draw_ravine.py             writes docs/ravine-light.svg and docs/ravine-dark.svg

The ground is a quadratic that is `STEEPNESS` times as curved across the ravine as along it. Plain gradient descent has
the best learning rate that exists for such a ground. Adam is `numba_adam.Adam` with its default betas. Every line,
needle and number is computed here from these two walks. tests/docs/test_ravine.py checks the committed files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import numba_adam as na

FOLDER = Path(__file__).resolve().parent.parent / "docs"
STEEPNESS = 50.0
START = (-9.0, 1.5)
STEPS = 36
ADAM_LR = 0.3
# Gradient descent on a quadratic with curvatures 1 and STEEPNESS shrinks fastest, in the worst direction, with this.
PLAIN_LR = 2 / (1 + STEEPNESS)
SHOWN = (1, 7, 13, 19, 25, 33)  # the steps whose compasses are drawn

Array = npt.NDArray[np.float64]


def loss(place: Array) -> float:
    """Return the height of the ground at a place (along, across)."""
    return float((place[0] ** 2 + STEEPNESS * place[1] ** 2) / 2)


def slope(place: Array) -> Array:
    """Return the gradient of `loss`."""
    return place * (1.0, STEEPNESS)


def walk_plainly() -> Array:
    """Return the places of plain gradient descent, the start first: an array (STEPS + 1, 2)."""
    place, places = np.array(START), [np.array(START)]
    for _ in range(STEPS):
        place = place - PLAIN_LR * slope(place)
        places.append(place)
    return np.array(places)


class Reading(NamedTuple):
    """What Adam's compasses show at one step, both corrected for the empty start."""

    step: int
    place: Array  # where the step begins
    momentum: Array  # exp_avg / (1 - beta1**step)
    terrain: Array  # sqrt(exp_avg_sq / (1 - beta2**step))
    moved: Array  # what the step adds to the place


def walk_with_adam() -> tuple[Array, list[Reading]]:
    """Return the places of Adam, as those of `walk_plainly`, and the readings of every step."""
    place, places, readings = np.array(START), [np.array(START)], []
    optimizer = na.Adam({"place": place}, lr=ADAM_LR)
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    for step in range(1, STEPS + 1):
        optimizer.step({"place": slope(place)})
        state = optimizer.state["place"]
        momentum = state["exp_avg"] / (1 - beta1**step)
        terrain = np.sqrt(state["exp_avg_sq"] / (1 - beta2**step))
        readings.append(Reading(step, places[-1], momentum, terrain, place - places[-1]))
        places.append(place.copy())
    return np.array(places), readings


class Theme(NamedTuple):
    """Colours for one kind of page; what lies behind the picture is the page's own."""

    name: str
    ink: str
    faint: str
    ground: tuple[str, ...]  # from the walls down to the floor
    contour: str
    plain: str
    adam: str
    terrain: str
    face: str  # of a dial


LIGHT = Theme(
    name="light",
    ink="#1f2328",
    faint="#8c959f",
    ground=("#e6d3b3", "#eee3cc", "#eef0e8", "#dcebef", "#c3dfe9"),
    contour="#ffffff",
    plain="#d55e00",
    adam="#0072b2",
    terrain="#00805d",
    face="#f6f8fa",
)
DARK = Theme(
    name="dark",
    ink="#e6edf3",
    faint="#6e7681",
    ground=("#4a3b2a", "#39322b", "#28303a", "#1d3543", "#16414f"),
    contour="#0d1117",
    plain="#ff8f4a",
    adam="#6cc4f5",
    terrain="#2fc99a",
    face="#161b22",
)

# Inches, from the lower left corner. One unit of the ground has the same length along and across.
_WIDTH, _HEIGHT = 10.0, 6.75
_UNIT = 0.77
_MAP_LEFT, _MAP_BOTTOM, _MAP_WIDTH, _MAP_HEIGHT = 0.05, 3.6, 9.9, 2.76
_ORIGIN = (9.1, _MAP_BOTTOM + _MAP_HEIGHT / 2)  # where the lowest place of the ground is drawn
_DIAL = 0.35  # radius
_ROWS = (2.78, 1.78, 0.78)  # heights of the dials' centres
_HEIGHTS = (*range(140, 0, -10), 4, 1)  # of the contour lines


def at(place: Array) -> tuple[float, float]:
    """Return where a place of the ground is drawn, in inches."""
    return (_ORIGIN[0] + _UNIT * float(place[0]), _ORIGIN[1] + _UNIT * float(place[1]))


def draw(folder: Path = FOLDER) -> list[Path]:
    """Draw the picture for light and for dark pages, and return the two files."""
    return [_drawn(theme, folder / f"ravine-{theme.name}.svg") for theme in (LIGHT, DARK)]


def _drawn(theme: Theme, path: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text. Without a salt of our own, every file would have other ids. Every place of a walk is kept.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "ravine", "path.simplify": False, "text.color": theme.ink}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        plain, (adam, readings) = walk_plainly(), walk_with_adam()
        _draw_ground(axes, theme)
        _draw_walks(axes, theme, plain, adam)
        _draw_labels(axes, theme, plain, adam)
        for step in SHOWN:
            _draw_column(axes, theme, readings[step - 1])
        metadata = {"Date": None, "Title": "Gradient descent and Adam in a ravine, with Adam's two compasses"}
        figure.savefig(path, metadata=metadata)
    return path


def _draw_ground(axes: Any, theme: Theme) -> None:
    """Fill the map with the ground, from its walls down to its floor: places of one height are an ellipse."""
    from matplotlib.patches import Ellipse, FancyBboxPatch

    frame = FancyBboxPatch(
        (_MAP_LEFT, _MAP_BOTTOM),
        _MAP_WIDTH,
        _MAP_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=theme.ground[0],
        edgecolor="none",
    )
    axes.add_patch(frame)
    for height in _HEIGHTS:
        along = 2 * _UNIT * np.sqrt(2 * height)
        colour = _between(theme.ground, 1 - np.sqrt(height / _HEIGHTS[0]))
        ellipse = Ellipse(
            _ORIGIN, along, along / np.sqrt(STEEPNESS), facecolor=colour, edgecolor=theme.contour, linewidth=0.5
        )
        axes.add_patch(ellipse)
        ellipse.set_clip_path(frame)


def _between(colours: tuple[str, ...], share: float) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ground", colours)(share)


def _draw_walks(axes: Any, theme: Theme, plain: Array, adam: Array) -> None:
    """Draw both walks, with a dot at the end of every step. The test finds a walk by its id."""
    for places, colour, width, gid in ((plain, theme.plain, 1.1, "gradient-descent"), (adam, theme.adam, 2.2, "adam")):
        points = np.array([at(place) for place in places])
        axes.plot(*points.T, color=colour, linewidth=width, solid_joinstyle="round", gid=gid)
        axes.plot(*points.T, "o", color=colour, markersize=1.6 * width, markeredgewidth=0)
        axes.plot(*points[-1], "o", color=colour, markersize=6, markeredgewidth=0)
    axes.plot(*at(plain[0]), "o", color=theme.ink, markersize=7)
    axes.plot(*_ORIGIN, "*", color=theme.ink, markersize=9, markeredgewidth=0)


def _draw_labels(axes: Any, theme: Theme, plain: Array, adam: Array) -> None:
    title = f"Two walks of {STEPS} steps down one ravine, {STEEPNESS:.0f} times as curved across as along"
    axes.text(0.1, _HEIGHT - 0.18, title, fontsize=11.5, weight="bold", va="center")
    start, middle = at(plain[0]), _MAP_LEFT + _MAP_WIDTH * 0.6
    axes.text(start[0] - 0.12, start[1], "start", fontsize=9.5, ha="right", va="center")
    axes.text(_ORIGIN[0], _ORIGIN[1] + 0.2, "lowest point", fontsize=9.5, ha="center", va="center")
    above = f"Plain gradient descent zigzags: from height {loss(plain[0]):.0f} to {loss(plain[-1]):.1f}"
    below = f"Adam walks: from height {loss(adam[0]):.0f} to {loss(adam[-1]):.1f}"
    style: Any = {"fontsize": 10.5, "weight": "bold", "ha": "center", "va": "center"}
    axes.text(middle, _MAP_BOTTOM + _MAP_HEIGHT - 0.3, above, color=theme.plain, **style)
    axes.text(middle, _MAP_BOTTOM + 0.3, below, color=theme.adam, **style)
    for height, (name, meaning, code, colour) in zip(_ROWS, _row_labels(theme), strict=True):
        axes.text(0.1, height + 0.2, name, fontsize=9, weight="bold", color=colour, va="center")
        axes.text(0.1, height, meaning, fontsize=8.5, va="center")
        axes.text(0.1, height - 0.18, code, fontsize=8.5, va="center")
    note = "Numbers: along the ravine, across it. Both compasses are corrected for the empty start."
    axes.text(0.1, 0.1, note, fontsize=8.5, color=theme.faint, va="center")


def _row_labels(theme: Theme) -> tuple[tuple[str, str, str, str], ...]:
    """Return what stands left of each row of dials, and its colour."""
    return (
        ("momentum compass", "where we've been", "needle: \N{MINUS SIGN}exp_avg", theme.adam),
        ("terrain compass", "how bumpy the road is", "ellipse: \N{SQUARE ROOT}exp_avg_sq", theme.terrain),
        ("the step", "needle \N{DIVISION SIGN} ellipse", "\N{MULTIPLICATION SIGN} learning rate", theme.ink),
    )


def _draw_column(axes: Any, theme: Theme, reading: Reading) -> None:
    """Draw the dials of one step below the place where it begins."""
    x, y = at(reading.place)
    axes.plot((x, x), (_ROWS[0] + _DIAL + 0.3, y), ":", color=theme.faint, linewidth=0.9)
    axes.text(x, _ROWS[0] + _DIAL + 0.15, f"step {reading.step}", fontsize=9.5, weight="bold", ha="center", va="center")
    downhill = -reading.momentum
    for height in _ROWS:
        _draw_dial(axes, theme, (x, height))
    needle, step = _DIAL * downhill / np.hypot(*downhill), _DIAL * reading.moved / (np.sqrt(2) * ADAM_LR)
    _draw_needle(axes, (x, _ROWS[0]), needle, color=theme.adam, gid=f"momentum-{reading.step}")
    _draw_terrain(axes, (x, _ROWS[1]), reading.terrain, color=theme.terrain, gid=f"terrain-{reading.step}")
    _draw_needle(axes, (x, _ROWS[2]), step, color=theme.ink, gid=f"step-{reading.step}")
    for height, pair in zip(_ROWS, (downhill, reading.terrain, reading.moved), strict=True):
        axes.text(x, height - _DIAL - 0.12, readable(pair), fontsize=8.5, ha="center", va="center")


def readable(pair: Array) -> str:
    """Return the numbers under a dial: along, across."""
    numbers = (f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}" for value in pair)
    return ", ".join(numbers).replace("-", "\N{MINUS SIGN}")


def _draw_dial(axes: Any, theme: Theme, centre: tuple[float, float]) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(centre, _DIAL, facecolor=theme.face, edgecolor=theme.faint, linewidth=0.8))
    angles = np.arange(8) * np.pi / 4
    radii = _DIAL * np.array([[0.9], [1.0], [np.nan]])  # a dash from the first to the second, and a gap
    x, y = centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)
    axes.plot(x.T.ravel(), y.T.ravel(), color=theme.faint, linewidth=0.8)


def _draw_needle(axes: Any, centre: tuple[float, float], way: Array, **style: Any) -> None:
    from matplotlib.patches import FancyArrowPatch

    tip = (centre[0] + way[0], centre[1] + way[1])
    shape: Any = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(centre, tip, **shape, **style))


def _draw_terrain(axes: Any, centre: tuple[float, float], terrain: Array, **style: Any) -> None:
    """Draw an ellipse as high and wide as the slopes have been; the rim is the first slope across the ravine."""
    from matplotlib.patches import Ellipse

    wide, high = 2 * _DIAL * terrain / (STEEPNESS * START[1])
    axes.add_patch(Ellipse(centre, wide, high, alpha=0.8, linewidth=0, **style))


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in draw()))
