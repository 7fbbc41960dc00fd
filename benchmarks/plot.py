"""The plot of benchmarks/README.md, drawn from a result file: `python -m benchmarks.plot [RESULT] [--write FOLDER]`.

It shows the time per parameter over the size. The default is the newest run with curves. The theme `curves` measures
them. The plot is written for light and dark pages: scaling-light.svg and scaling-dark.svg. The same run gives the
same bytes with the same Matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.case import Curves
from benchmarks.results import Run, load, newest_curves

FOLDER = Path(__file__).resolve().parent.parent / "docs"
_OURS = "ours, "
_ONE_THREAD = ", 1 thread"
_SIZE_INCHES = (10.0, 4.8)
_FAR_ABOVE = 5.0  # times our slowest point


class Theme(NamedTuple):
    """Colours for one kind of page. The background is transparent."""

    name: str
    ink: str
    faint: str  # the grid
    ours: tuple[str, ...]
    peers: tuple[str, ...]


# Okabe and Ito's colours, which colour-blind readers can distinguish. They are lighter on dark pages.
LIGHT = Theme(
    "light", "#1f2328", "#d1d9e0", ("#0072b2", "#d55e00", "#00805d"), ("#57606a", "#a0497c", "#8a6a00", "#6639ba")
)
DARK = Theme(
    "dark", "#e6edf3", "#3d444d", ("#56b4e9", "#ff8f4a", "#2fc99a"), ("#9da7b3", "#e39bc4", "#e8b93c", "#b695f8")
)
_MARKERS = "sDv^"


def curves_of(run: Run) -> Curves:
    """Return all curves of a run, by contestant.

    Raises:
        ValueError: the run has no curves.
    """
    curves = {whose: points for outcome in run.outcomes for whose, points in outcome.curves.items() if points}
    if not curves:
        raise ValueError("this run has no curves. Run the theme `curves`: python -m benchmarks --only curves")
    return curves


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw a run's curves for light and for dark pages.

    Args:
        run: a run with the theme curves.
        folder: where the files go.

    Returns:
        The files.

    Raises:
        ValueError: the run has no curves.
    """
    curves = curves_of(run)
    return [_drawn(curves, run, theme, folder / f"scaling-{theme.name}.svg") for theme in (LIGHT, DARK)]


def _drawn(curves: Curves, run: Run, theme: Theme, path: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # Keep text as text. A fixed salt gives the same ids in every file.
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "numba-adam",
        "font.size": 9,
        **dict.fromkeys(inked, theme.ink),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        figure.patch.set_alpha(0)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        shown, above = _split(curves)
        threads = f"{run.settings.threads} threads"
        _panel(left, {whose: points for whose, points in shown.items() if not _is_single(whose)}, theme, threads)
        ours = {whose: points for whose, points in shown.items() if whose.startswith(_OURS)}
        _panel(right, ours, theme, f"ours: {threads}, and one thread (dotted)")
        left.set_ylabel("nanoseconds per parameter")
        left.text(0.02, 0.98, "\n".join(above), transform=left.transAxes, va="top", fontsize=8)
        handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, framealpha=0, fontsize=8)
        figure.suptitle(f"Time of a step per parameter, {run.machine['CPU']}, {run.started[:10]}", fontsize=10)
        figure.savefig(path, metadata={"Date": None, "Title": "Time of an Adam step per parameter, over size"})
    return path


def _split(curves: Curves) -> tuple[Curves, list[str]]:
    """Return the curves to draw, and a line of text for each curve that is too high to draw."""
    ours = max(max(_nanoseconds(points)) for whose, points in curves.items() if whose.startswith(_OURS))
    high = {whose for whose, points in curves.items() if min(_nanoseconds(points)) > _FAR_ABOVE * ours}
    lines = [
        f"above this plot: {whose}, {min(_nanoseconds(curves[whose])):.0f} to {max(_nanoseconds(curves[whose])):.0f} ns"
        for whose in curves
        if whose in high
    ]
    return {whose: points for whose, points in curves.items() if whose not in high}, lines


def _nanoseconds(points: Sequence[tuple[float, float]]) -> list[float]:
    return [1e9 * seconds / size for size, seconds in points]


def _panel(axes: Any, curves: Curves, theme: Theme, title: str) -> None:
    """Draw the curves: ours solid, ours with one thread dotted, the peers' dashed."""
    from matplotlib.ticker import LogLocator

    formats = list(dict.fromkeys(_format(whose) for whose in curves if whose.startswith(_OURS)))
    peers = [whose for whose in curves if not whose.startswith(_OURS)]
    for whose, points in curves.items():
        sizes = [size for size, _ in points]
        axes.plot(sizes, _nanoseconds(points), label=whose, markersize=4, **_style(whose, formats, peers, theme))
    axes.set(xscale="log", yscale="log", xlabel="parameters")
    axes.set_title(title, fontsize=9)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(color=theme.faint, linewidth=0.6, which="major")
    axes.patch.set_alpha(0)


def _is_single(whose: str) -> bool:
    return whose.endswith(_ONE_THREAD)


def _format(whose: str) -> str:
    """Return the format in the name of one of our curves: "ours, float32, 2 threads"."""
    return whose.removeprefix(_OURS).rpartition(", ")[0]


def _style(whose: str, formats: list[str], peers: list[str], theme: Theme) -> dict[str, Any]:
    if whose.startswith(_OURS):
        color = theme.ours[formats.index(_format(whose)) % len(theme.ours)]
        return {"color": color, "marker": "o", "linewidth": 2, "linestyle": ":" if _is_single(whose) else "-"}
    place = peers.index(whose)
    color, marker = theme.peers[place % len(theme.peers)], _MARKERS[place % len(_MARKERS)]
    return {"color": color, "marker": marker, "linewidth": 1.2, "linestyle": "--"}


def main() -> None:
    """Draw the plot and print the paths of its files."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description="Draw the plot of benchmarks/README.md."
    )
    parser.add_argument("result", nargs="?", type=Path, help="a result file; default: the newest run with curves")
    parser.add_argument("--write", type=Path, default=FOLDER, metavar="FOLDER", help="output folder (%(default)s)")
    arguments = parser.parse_args()
    try:
        for path in draw(load(arguments.result or newest_curves()), arguments.write):
            print(path)
    except ModuleNotFoundError as error:
        sys.exit(f"benchmarks.plot: {error.name} is not installed: pip install -r benchmarks/requirements.txt")
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.plot: {error}")


if __name__ == "__main__":
    main()
