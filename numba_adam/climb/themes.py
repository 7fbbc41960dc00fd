"""The colours of the pictures, for light and for dark pages. Imports nothing of ours."""

from __future__ import annotations

from typing import NamedTuple


class Theme(NamedTuple):
    """Colours for one kind of page."""

    page: str
    ink: str
    faint: str
    ground: tuple[str, ...]
    """From the highest places down to the lowest."""
    contour: str
    plain: str
    adam: str
    terrain: str
    face: str
    """Of a dial."""


THEMES = {
    "light": Theme(
        page="#ffffff",
        ink="#1f2328",
        faint="#6e7781",
        ground=("#e6d3b3", "#eee3cc", "#eef0e8", "#dcebef", "#c3dfe9"),
        contour="#ffffff",
        plain="#d55e00",
        adam="#0072b2",
        terrain="#00805d",
        face="#f6f8fa",
    ),
    "dark": Theme(
        page="#0d1117",
        ink="#e6edf3",
        faint="#8b949e",
        ground=("#4a3b2a", "#39322b", "#28303a", "#1d3543", "#16414f"),
        contour="#0d1117",
        plain="#ff8f4a",
        adam="#6cc4f5",
        terrain="#2fc99a",
        face="#161b22",
    ),
}
