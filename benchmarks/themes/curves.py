"""The data of the plot: time per parameter by size, for all contestants, ours on one thread and on all.

The speed of such machines varies by up to two, so only times that were measured together are comparable: all
contestants of a size take turns with a yardstick, ours in float32 at 10 million. A point is the median ratio of a
contestant's time to the yardstick's in the same round, times the yardstick's overall median. If the contestants of a
size do not fit into memory together, each takes turns with the yardstick alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.case import Case, Curves, Measurement, MissingError, Settings
from benchmarks.contestants.ours import Ours
from benchmarks.measure import rotate
from benchmarks.statistics import summarise
from benchmarks.themes.scaling import (
    BEYOND_CACHES,
    BYTES_EACH,
    FORMATS,
    PEERS,
    SHARE_OF_MEMORY,
    SIZES,
    fitting_sizes,
    free_bytes,
    name_of_ours,
    per_size,
)
from benchmarks.workload import Repeated, Workload

_PARTS_OF_A_CASE = 4  # each size takes this fraction of a case's time
_FEWEST_ROUNDS = 9
_YARDSTICK = "float32"  # the format


class _Contestant(NamedTuple):
    """A contestant with a curve."""

    label: str
    make: Callable[[Workload], Any]
    largest: int


def _ours(threads: int) -> list[_Contestant]:
    def maker(key: str) -> Callable[[Workload], Ours]:
        return lambda workload: Ours(workload, threads, **FORMATS[key].options)

    return [_Contestant(name_of_ours(key, threads), maker(key), SIZES[-1]) for key in FORMATS]


def _peers(threads: int) -> list[_Contestant]:
    """Return the peers that run here."""

    def maker(key: str) -> Callable[[Workload], Any]:
        return lambda workload: PEERS[key].make(workload, threads)

    found = []
    for key, peer in PEERS.items():
        try:
            maker(key)(Repeated(((1_000,),)))
        except MissingError:
            continue
        found.append(_Contestant(peer.label, maker(key), peer.largest))
    return found


def _together(contestants: list[_Contestant], size: int) -> Iterator[list[_Contestant]]:
    """Return groups of contestants that fit into memory: all together, or one at a time."""
    if len(contestants) * size * BYTES_EACH < SHARE_OF_MEMORY * free_bytes():
        yield contestants
    else:
        yield from ([contestant] for contestant in contestants)


def _measured(contestants: list[_Contestant], settings: Settings) -> Measurement:
    """Measure the contestants of each size in turns."""
    brief = replace(
        settings,
        seconds=settings.seconds / _PARTS_OF_A_CASE,
        fewest_pairs=min(_FEWEST_ROUNDS, settings.fewest_pairs),
    )
    base_size = settings.elements(BEYOND_CACHES)
    base = Ours(Repeated(((base_size,),)), settings.threads, **FORMATS[_YARDSTICK].options)
    relative: Curves = {contestant.label: [] for contestant in contestants}
    yardstick: list[float] = []
    pairs: list[tuple[float, float | None]] = []
    for size in fitting_sizes(settings, SIZES[-1]):
        for group in _together([one for one in contestants if size <= one.largest], size):
            made = [contestant.make(Repeated(((size,),))) for contestant in group]
            rounds = rotate([base.step, *(one.step for one in made)], brief)
            del made
            yardstick += [of_base for of_base, *_ in rounds]
            for place, contestant in enumerate(group, 1):
                ratio = summarise([each[place] / each[0] for each in rounds]).median
                relative[contestant.label].append((float(size), ratio))
            if group[0] is contestants[0]:
                pairs = [(each[1] / size, each[0] / base_size) for each in rounds]
    unit = summarise(yardstick).median
    curves = {whose: [(size, ratio * unit) for size, ratio in points] for whose, points in relative.items()}
    notes = {key: note for whose, points in curves.items() for key, note in per_size(whose, points).items()}
    return Measurement(pairs, notes, curves)


def _all_threads(settings: Settings) -> Measurement:
    return _measured([*_ours(settings.threads), *_peers(settings.threads)], settings)


def _one_thread(settings: Settings) -> Measurement:
    return _measured(_ours(settings.threads), settings)


CASES: tuple[Case, ...] = (
    Case(
        name="curves/all-threads",
        title="time per parameter at the largest size of the plot, float32",
        peer="the same at 10 million",
        is_long=True,
        run=_all_threads,
    ),
    Case(
        name="curves/one-thread",
        title="time per parameter at the largest size of the plot, float32, one thread",
        peer="the same at 10 million",
        is_long=True,
        threads=1,
        run=_one_thread,
    ),
)
