"""How a step's time grows: with the number of parameters, and with the number of arrays. Ours alone.

Each size has turns of its own, so no slow neighbour empties the caches between two calls. A warm step follows another
step at once. Before a cold step, the process writes other memory, more than the innermost caches hold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.case import Case, Measurement, Settings, Unit
from benchmarks.contestants.ours import Ours
from benchmarks.measure import interleave, rotate
from benchmarks.report import amount
from benchmarks.statistics import summarise
from benchmarks.themes.scaling import BYTES_EACH, SHARE_OF_MEMORY, free_bytes
from benchmarks.workload import Repeated, equal_arrays

_SIZES = tuple(10**power for power in range(3, 10))
_COUNTS, _LENGTHS = (1, 10, 100, 1_000, 10_000, 100_000), (1, 100, 10_000)
_MOST_ELEMENTS = 100_000_000  # of all arrays of a step
_OTHER_BYTES = 64 * 2**20
_PARTS_OF_A_CASE = 10  # each size takes this fraction of a case's time
_FEWEST_PAIRS = 7


def _brief(settings: Settings) -> Settings:
    pairs = min(_FEWEST_PAIRS, settings.fewest_pairs)
    return replace(settings, seconds=settings.seconds / _PARTS_OF_A_CASE, fewest_pairs=pairs)


def _sizes(settings: Settings) -> Measurement:
    """Measure each size cold and warm; the pairs are those of the largest."""
    other = np.zeros(_OTHER_BYTES, np.uint8)
    most = min(settings.elements(_SIZES[-1]), int(SHARE_OF_MEMORY * free_bytes() / BYTES_EACH))
    pairs: list[tuple[float, float | None]] = []
    notes: dict[str, str] = {}
    for size in (size for size in _SIZES if size <= most):
        ours = Ours(Repeated(((size,),)), settings.threads)
        warm = [turn[0] / size for turn in rotate([ours.step], _brief(settings))]
        cold = [turn[0] / size for turn in rotate([ours.step], _brief(settings), [lambda: other.fill(1)])]
        pairs = list(zip(cold, warm, strict=False))
        texts = (amount(summarise(values).median, Unit.SECONDS) for values in (warm, cold))
        notes[f"{size:,}"] = "{} a parameter warm, {} cold".format(*texts)
    return Measurement(pairs, notes)


def _arrays(settings: Settings) -> Measurement:
    """Measure many arrays against one array of as many elements; the pairs are those of the most small arrays."""
    pairs: list[tuple[float, float | None]] = []
    notes: dict[str, str] = {}
    for length in _LENGTHS:
        for count in (count for count in _COUNTS if count * length <= settings.elements(_MOST_ELEMENTS)):
            many, one = (Ours(equal_arrays(n, m), settings.threads) for n, m in ((count, length), (1, count * length)))
            turns = interleave(many.step, one.step, _brief(settings))
            ours, flat = (summarise([turn[place] or 0.0 for turn in turns]).median for place in range(2))
            texts = (amount(value, Unit.SECONDS) for value in (ours, ours / count, flat))
            notes[f"{count:,} of {length:,}"] = "{} a step, {} an array; as one array {}".format(*texts)
            if length == _LENGTHS[1]:
                pairs = turns
    return Measurement(pairs, notes)


CASES: tuple[Case, ...] = (
    *(
        Case(
            name=f"growth/sizes/{threads}-thread{'s' * (threads > 1)}",
            title=f"time per parameter at the largest size, {threads} thread{'s' * (threads > 1)}, cold caches",
            peer="warm caches",
            threads=threads,
            is_long=True,
            run=_sizes,
        )
        for threads in (1, 2)
    ),
    *(
        Case(
            name=f"growth/arrays/{threads}-thread{'s' * (threads > 1)}",
            title=f"100,000 arrays of 100, {threads} thread{'s' * (threads > 1)}",
            peer="one array of as many elements",
            threads=threads,
            is_long=True,
            run=_arrays,
        )
        for threads in (1, 2)
    ),
)
