"""What is printed: contestants side by side, over all seeds. Imports the standard library alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.measure import CHECKPOINT, Error, Streamed, Trained
from benchmarks.evidence.streams import Stream
from benchmarks.report import aligned


class Spread(NamedTuple):
    """Some numbers, one from each seed."""

    mean: float
    deviation: float
    """Of the sample; 0 for one number."""


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def pooled(errors: Sequence[Error]) -> Error:
    """Return the mean of the means, and the largest of all."""
    return Error(statistics.fmean(error.mean for error in errors), max(error.largest for error in errors))


def of_losses(seeds: Sequence[Mapping[str, Trained]]) -> list[str]:
    """Return a table of final losses: mean and spread, and how far from float32 state with the same seed."""
    names = list(seeds[0])
    rows: list[Sequence[str]] = [("final loss", "training", "difference", "held out", "difference", "in 8 bits")]
    for name in names:
        cells = [name]
        for column in (0, 1):
            own = [seed[name].losses[column] for seed in seeds]
            exact = [seed[names[0]].losses[column] for seed in seeds]
            apart = spread([a - b for a, b in zip(own, exact, strict=True)])
            cells += [_plus_minus(spread(own)), "" if name == names[0] else _plus_minus(apart, "+")]
        rows.append((*cells, f"{statistics.fmean(seed[name].quantised for seed in seeds):.0%}"))
    return aligned(rows)


def _plus_minus(value: Spread, sign: str = "") -> str:
    return f"{value.mean:{sign}.4f} +- {value.deviation:.4f}"


def of_errors(seeds: Sequence[Mapping[str, Trained]]) -> list[str]:
    """Return a table of the parameters' distances from those of float32 state."""
    names, steps = list(seeds[0])[1:], sorted(next(iter(seeds[0].values())).replayed)
    kinds = [(kind, step) for kind in ("replayed", "closed") for step in steps]
    rows: list[Sequence[str]] = [("parameter error, in lr", *(f"{_KINDS[kind]}, {step} steps" for kind, step in kinds))]
    for name in names:
        errors = [pooled([getattr(seed[name], kind)[step] for seed in seeds]) for kind, step in kinds]
        rows.append((name, *map(_mean_and_largest, errors)))
    return aligned(rows)


_KINDS = {"replayed": "same gradients", "closed": "own gradients"}


def _mean_and_largest(error: Error) -> str:
    return f"{error.mean:.3g} (max {error.largest:.3g})"


def of_streams(results: Sequence[tuple[Stream, Sequence[Mapping[str, Streamed]]]]) -> list[str]:
    """Return a table for each stream."""
    lines = []
    for stream, seeds in results:
        last = stream.steps
        heading = f"after {CHECKPOINT} steps", f"after {last}", f"from {CHECKPOINT} to {last}", "root / float32's"
        rows: list[Sequence[str]] = [(stream.name, *heading)]
        for name in seeds[0]:
            own = [seed[name] for seed in seeds]
            errors = [pooled([seed.errors[step] for seed in own]) for step in (CHECKPOINT, last)]
            errors.append(pooled([seed.late for seed in own]))
            rows.append((name, *map(_mean_and_largest, errors), _root([seed.root for seed in own])))
        way = statistics.fmean(next(iter(seed.values())).way for seed in seeds)
        lines += ["", f"{stream.title} (float32 state goes {way:.3g} lr on average)", *aligned(rows)]
    return lines


def _root(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return f"{statistics.fmean(known):.3f}" if known else "-"
