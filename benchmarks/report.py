"""A run as text: one row of cells for each case. The printed report and the tables of the documents use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.case import Quantity, Settings, Unit
from benchmarks.results import Outcome


class Row(NamedTuple):
    """The cells of one case."""

    title: str
    peer: str
    ours: str
    theirs: str
    figure: str  # median [first quartile, third quartile]
    asked: str
    verdict: str


HEADINGS = Row("case", "against", "ours", "theirs", "median [quartiles]", "asked", "met")
_NONE = "-"


def row(outcome: Outcome) -> Row:
    """Return a case's cells."""
    peer = outcome.peer or _NONE
    if outcome.problem:
        return Row(outcome.title, peer, _NONE, _NONE, outcome.problem, asked(outcome), "not measured")
    theirs = _NONE if outcome.theirs is None else amount(outcome.theirs, outcome.unit)
    verdict = {True: "yes", False: "NO", None: _NONE}[outcome.met]
    ours = amount(outcome.ours, outcome.unit)
    return Row(outcome.title, peer, ours, theirs, _figure(outcome), asked(outcome), verdict)


def _figure(outcome: Outcome) -> str:
    median, *quartiles = (_one(value, outcome.quantity, outcome.unit) for value in outcome.summary)
    return f"{median} [{', '.join(quartiles)}]" if len(outcome.pairs) > 1 else median


def asked(outcome: Outcome) -> str:
    """Return the bar of a case as text."""
    if outcome.bar is None:
        return _NONE
    return f"at {'least' if outcome.bar.at_least else 'most'} {_one(outcome.bar.limit, outcome.quantity, outcome.unit)}"


def details(outcome: Outcome) -> list[str]:
    """Return the lines to print after a case: its figure, its verdict and its notes."""
    cells = row(outcome)
    against = f" against {cells.peer}" if outcome.peer else ""
    measured = f"ours {cells.ours}, theirs {cells.theirs}, {len(outcome.pairs)} pairs"
    notes = [f"    {name}: {value}" for name, value in outcome.notes.items()]
    return [
        f"{outcome.name}: {cells.title}{against}",
        f"    {cells.figure}; asked: {cells.asked}; met: {cells.verdict}",
        *([] if outcome.problem else [f"    {measured}"]),
        *notes,
    ]


def _one(value: float, quantity: Quantity, unit: Unit) -> str:
    return f"{value:.3g}" if quantity in (Quantity.RATIO, Quantity.FRACTION) else amount(value, unit)


def amount(value: float, unit: Unit) -> str:
    """Return a measurement with three digits and its unit."""
    if unit is Unit.COUNT:
        return f"{value:.0f}"
    if unit is Unit.BYTES:
        return f"{value / 1e6:.3g} MB"
    if unit is Unit.BYTES_EACH:
        return f"{value:.4g} bytes"
    scales = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    scale, symbol = next((entry for entry in scales if abs(value) >= entry[0]), (1e-9, "ns"))
    return f"{_plain(value / scale)} {symbol}" if value else "0 s"


def _plain(value: float) -> str:
    """Return a number with three digits and without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, entry, widths)).rstrip() for entry in rows]


def header(machine: dict[str, str], versions: dict[str, str], settings: Settings) -> list[str]:
    """Return the lines about the machine, the versions and the settings of a run."""
    return [
        *(f"{name}: {value}" for name, value in machine.items()),
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"threads: {settings.threads} for everybody; every case's process is confined to as many CPUs",
        *_warning(settings),
        f"pairs: at least {settings.fewest_pairs}, for about {settings.seconds:g} seconds a case, after warming up",
    ]


def _warning(settings: Settings) -> list[str]:
    if not settings.largest_elements:
        return []
    return [f"QUICK: arrays of more than {settings.largest_elements:,} elements are cut to that; do not publish this"]


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines that count the bars that were met. They also name the others and the missing measurements."""
    with_bar = [outcome for outcome in outcomes if outcome.bar]
    lines = [f"{sum(outcome.met is True for outcome in with_bar)} of {len(with_bar)} bars met"]
    lines += [f"NOT MET: {outcome.name}: {row(outcome).figure}" for outcome in with_bar if outcome.met is False]
    lines += [f"NOT MEASURED: {outcome.name}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    return lines
