"""The picture of the demonstration: the loss over time, the version over time, and the crash in both.

May import NumPy; matplotlib inside the functions. Opens no window.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from numba_adam.demo.story import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#9065b0", "#ad1a72")
_RED = "#c4332b"
_GREY = "#5f5e5b"
_INK = "#37352f"


def draw(record: Record, frameworks: list[str], path: Path) -> None:
    """Write the picture of a run to `path`. The suffix of the file name selects the format, such as PNG.

    Args:
        record: the run.
        frameworks: the framework of each worker, for the legend.
        path: the file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), dpi=150, layout="constrained", facecolor="white")
    losses, versions = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    _draw_losses(losses, record, frameworks)
    _draw_versions(versions, record)
    for axes in (losses, versions):
        axes.grid(color="#e9e9e7", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if record.crash:
        _mark_crash(losses, versions, record)
    figure.suptitle(
        f"{len(frameworks)} workers train one model; the server is killed half-way\n"
        f"test accuracy {record.accuracy:.1%}, {record.pushes_per_second:.0f} pushes per second",
        fontsize=13,
    )
    figure.savefig(path)


def _draw_losses(axes: Axes, record: Record, frameworks: list[str]) -> None:
    """Draw the loss of every push as a dot, and the running median of all pushes as a line."""
    for worker, framework in enumerate(frameworks):
        pushes = [push for push in record.pushes if push.worker == worker]
        axes.plot(
            [push.time for push in pushes],
            [push.loss for push in pushes],
            ".",
            color=_COLOURS[worker % len(_COLOURS)],
            markersize=3,
            alpha=0.3,
            markeredgewidth=0,
            label=f"worker {worker} ({framework})",
        )
    width = max(5, len(record.pushes) // 60) | 1
    label = f"median of {width} pushes"
    for part in record.parts:
        if len(part) >= width:
            windows = np.lib.stride_tricks.sliding_window_view([push.loss for push in part], width)
            times = [push.time for push in part[width // 2 : -(width // 2)]]
            axes.plot(times, np.median(windows, axis=1), color=_INK, linewidth=1.8, label=label)
            label = "_no legend entry for the second part"
    axes.set_yscale("log")
    axes.set_ylabel("loss on a batch (cross-entropy)")
    legend = axes.legend(frameon=False, loc="upper right")
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_markersize"):
            handle.set_markersize(8)
            handle.set_alpha(0.9)


def _draw_versions(axes: Axes, record: Record) -> None:
    """Draw the version after each push. It drops where the crash lost pushes."""
    for part in record.parts:
        axes.plot([push.time for push in part], [push.version for push in part], color=_INK, linewidth=1.8)
    axes.set_ylabel("version of the model")
    axes.set_xlabel("seconds since the first push")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)


def _mark_crash(losses: Axes, versions: Axes, record: Record) -> None:
    """Mark the time without training in both plots. Label the crash and the number of lost pushes."""
    crash = record.crash
    assert crash is not None
    last = record.parts[-1]
    resumed = (
        next((push for push in last if push.time >= crash.back_at), last[-1]) if len(record.parts) == 1 else last[0]
    )
    lost = f"{record.lost} pushes lost and repeated" if record.lost else "no push was lost"
    for axes in (losses, versions):
        axes.axvspan(crash.killed_at, resumed.time, color=_RED, alpha=0.12, linewidth=0)
        axes.axvline(crash.killed_at, color=_RED, linewidth=1.4)
    losses.annotate(
        "kill -9 of the server",
        xy=(crash.killed_at, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-6, -14),
        textcoords="offset points",
        ha="right",
        color=_RED,
        fontweight="bold",
    )
    versions.annotate(
        f"server back after {crash.back_at - crash.killed_at:.1f} s; the workers continue\n"
        f"from version {record.restored}: {lost}",
        xy=(resumed.time, resumed.version),
        xytext=(36, -16),
        textcoords="offset points",
        va="center",
        color=_GREY,
        fontsize=9.5,
        arrowprops={"arrowstyle": "->", "color": _GREY},
    )
