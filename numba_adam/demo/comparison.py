"""The three modes of training beside each other: the same workers, one of them slow, and one picture.

May import NumPy and its neighbours; matplotlib inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from numba_adam.demo.story import Plan, Push, Record

MODES = {"async": "#0b6e99", "sync": "#d9730d", "ssp": "#0f7b6c"}
"""The modes, and the colour of each."""

_WINDOW = 61  # pushes of a running median


def plans(plan: Plan) -> list[Plan]:
    """Return the plan for each mode, without a kill."""
    return [replace(plan, mode=mode, is_killed=False) for mode in MODES]


def outcome(records: Mapping[str, Record]) -> str:
    """Return the results as text."""
    return "\n".join(
        f"{mode:9} {_seconds(record):5.1f} s for {len(record.pushes)} pushes, {_shares(record)} by worker; "
        f"accuracy {record.accuracy:.1%} on {record.tested} test images"
        for mode, record in records.items()
    )


def draw_modes(records: Mapping[str, Record], pause_seconds: float, path: Path) -> None:
    """Write a picture to `path`: the loss over time and over pushes, a line for each mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=150, layout="constrained", facecolor="white")
    over_time, over_pushes = figure.subplots(1, 2, sharey=True)
    for mode, record in records.items():
        pushes = sorted(record.pushes)
        losses, middle = _running_median(pushes)
        for axes, places in ((over_time, [push.time for push in pushes]), (over_pushes, range(1, len(pushes) + 1))):
            axes.plot(np.asarray(places)[middle], losses, color=MODES[mode], linewidth=1.8, label=mode)
    over_time.set_xlabel("seconds since the first push")
    over_pushes.set_xlabel("pushes of all workers")
    over_time.set_ylabel("loss on a batch, running median")
    for axes in (over_time, over_pushes):
        axes.set_yscale("log")
        axes.grid(color="#e9e9e7", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    over_pushes.legend(frameon=False, loc="upper right")
    workers = 1 + max(push.worker for record in records.values() for push in record.pushes)
    figure.suptitle(
        f"{workers} workers train one model in three modes\n"
        f"worker {workers - 1} pauses {pause_seconds * 1e3:.0f} ms before each push",
        fontsize=12,
    )
    figure.savefig(path)


def _running_median(pushes: list[Push]) -> tuple[np.ndarray, slice]:
    """Return the medians of windows of pushes, and the places of their middles."""
    width = min(_WINDOW, (len(pushes) - 1) // 2 * 2 + 1)
    windows = np.lib.stride_tricks.sliding_window_view([push.loss for push in pushes], width)
    return np.median(windows, axis=1), slice(width // 2, width // 2 + len(windows))


def _seconds(record: Record) -> float:
    return max(push.time for push in record.pushes)


def _shares(record: Record) -> str:
    counts = np.bincount([push.worker for push in record.pushes])
    return " + ".join(str(count) for count in counts)
