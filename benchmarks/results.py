"""A run as a file: every measured pair, the machine and the settings. Imports no contestant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import Bar, Case, Curves, Quantity, Settings, Unit
from benchmarks.statistics import Summary, summarise

FOLDER = Path(__file__).resolve().parent / "results"
OTHERS = ("evidence",)  # folders of FOLDER that are no CPU's
_FORMAT = 1
_DIGITS = 7  # significant digits; clocks are not more precise


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one case."""

    name: str
    """The case's name."""

    title: str
    """Title in the table."""

    peer: str
    """Name of the peer in the table. Empty without a peer."""

    quantity: Quantity
    """The quantity that is computed from a pair."""

    unit: Unit
    """The unit of the measurements."""

    bar: Bar | None
    """The bar; None without one."""

    pairs: list[tuple[float, float | None]] = field(default_factory=list)
    """(ours, the peer's), in order of time."""

    notes: dict[str, str] = field(default_factory=dict)
    """Sizes and threads."""

    curves: Curves = field(default_factory=dict)
    """Points of the plot, by contestant."""

    problem: str = ""
    """Why there are no pairs."""

    @property
    def summary(self) -> Summary:
        """The quantity's median and quartiles."""
        return summarise([self.quantity.of(ours, peer) for ours, peer in self.pairs])

    @property
    def ours(self) -> float:
        """The median of our own measurements."""
        return summarise([ours for ours, _ in self.pairs]).median

    @property
    def theirs(self) -> float | None:
        """The median of the peer's measurements; None without a peer."""
        values = [peer for _, peer in self.pairs if peer is not None]
        return summarise(values).median if values else None

    @property
    def met(self) -> bool | None:
        """Whether the bar was met. None without a bar or without measurements."""
        return self.bar.met(self.summary.median) if self.bar and self.pairs else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the benchmarks."""

    started: str
    """Time of the run in UTC: 2026-11-23T02:10:00Z."""

    complete: bool
    """True if every case of the registry was run."""

    settings: Settings
    """The settings of the run."""

    machine: dict[str, str]
    """The hardware and the operating system."""

    versions: dict[str, str]
    """The versions of the libraries."""

    outcomes: list[Outcome]
    """One for each case, in the registry's order."""


def outcome_of(case: Case, answer: dict[str, Any]) -> Outcome:
    """Return the result of a case from the return value of `worker.run`."""
    problems = [f"{kind}: {answer[kind]}" for kind in ("missing", "failed") if kind in answer]
    return Outcome(
        name=case.name,
        title=case.title,
        peer=case.peer,
        quantity=case.quantity,
        unit=case.unit,
        bar=case.bar,
        pairs=_pairs(answer.get("pairs", ())),
        notes=dict(answer.get("notes", {})),
        curves=_curves(answer.get("curves", {})),
        problem=problems[0] if problems else "",
    )


def _pairs(values: Iterable[Sequence[float | None]]) -> list[tuple[float, float | None]]:
    return [(_rounded(ours), None if peer is None else _rounded(peer)) for ours, peer in values]


def _curves(curves: Mapping[str, Iterable[Sequence[float]]]) -> Curves:
    return {whose: [(_rounded(x), _rounded(y)) for x, y in points] for whose, points in curves.items()}


def _rounded(value: float | None) -> float:
    assert value is not None, "ours is always measured"
    return float(f"{value:.{_DIGITS}g}")


def free_path(stem: str, folder: Path) -> Path:
    """Return a path for a new result file. It does not exist yet."""
    path, number = folder / f"{stem}.json", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    return path


def save(run: Run, path: Path) -> None:
    """Write a run with one line per case, so that a diff of two files is readable."""
    record = asdict(run)
    lines = [json.dumps(entry, default=lambda member: member.value) for entry in record.pop("outcomes")]
    head = json.dumps({"format": _FORMAT, **record}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.removesuffix("\n}") + ',\n "outcomes": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the file is of another format.
    """
    record = json.loads(path.read_text())
    if record.pop("format", None) != _FORMAT:
        raise ValueError(f"{path.name} is no result of format {_FORMAT}: run the benchmarks again")
    record["outcomes"] = [_outcome(entry) for entry in record["outcomes"]]
    return Run(**{**record, "settings": Settings(**record["settings"])})


def _outcome(entry: dict[str, Any]) -> Outcome:
    bar = Bar(**entry["bar"]) if entry["bar"] else None
    kinds = {"quantity": Quantity(entry["quantity"]), "unit": Unit(entry["unit"]), "bar": bar}
    numbers = {"pairs": _pairs(entry["pairs"]), "curves": _curves(entry.get("curves", {}))}
    return Outcome(**{**entry, **kinds, **numbers})


def newest(folder: Path = FOLDER) -> dict[Path, Run]:
    """Return the newest complete run of each kind of CPU, by path.

    Args:
        folder: has a folder for each CPU.

    Raises:
        FileNotFoundError: there is none.
    """
    found = {}
    for own in sorted({path.parent for path in folder.glob("*/*.json") if path.parent.name not in OTHERS}):
        complete = [(run.started, path, run) for path in own.glob("*.json") if (run := load(path)).complete]
        if complete:
            _, path, run = max(complete, key=lambda entry: entry[:2])
            found[path] = run
    if not found:
        raise FileNotFoundError(f"no complete run in {folder.name}/: make one with `python -m benchmarks`")
    return found


def newest_curves(folder: Path = FOLDER) -> Path:
    """Return the newest run with points for the plot.

    Raises:
        FileNotFoundError: there is none.
    """
    runs = {path: load(path) for path in folder.glob("*/*.json") if path.parent.name not in OTHERS}
    curved = [(run.started, path) for path, run in runs.items() if any(one.curves for one in run.outcomes)]
    if not curved:
        raise FileNotFoundError(f"no curves in {folder.name}/: make some with `python -m benchmarks --only curves`")
    return max(curved)[1]
