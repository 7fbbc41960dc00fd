"""One flat float32 array, of sizes limited by Python's overhead, by the caches, and by memory."""

from __future__ import annotations

from benchmarks.case import Bar, Case, Measurement, Quantity, Settings
from benchmarks.contestants import memory_loop
from benchmarks.contestants.memory_loop import MemoryLoop
from benchmarks.contestants.ours import Ours
from benchmarks.measure import interleave
from benchmarks.themes.comparison import against_all, sizes
from benchmarks.workload import Workload, check_usual, one_array

_IN_CACHES, _BEYOND_CACHES = 100_000, 50_000_000


def _flat(name: str, title: str, elements: int, torch_bar: float) -> list[Case]:
    def workload(settings: Settings) -> Workload:
        return one_array(settings.elements(elements))

    return against_all(f"flat/{name}", title, workload, torch_bar)


def _roots(settings: Settings) -> Measurement:
    """Compare with a loop over the same arrays that has as many roots and divisions as an update, and no other work."""
    workload = one_array(settings.elements(_IN_CACHES))
    ours = Ours(workload, settings.threads)
    ours.step()
    pairs = interleave(ours.step, MemoryLoop(ours, settings.threads, has_roots=True).step, settings)
    return Measurement(pairs, {**sizes(workload), "our threads": ours.threads()})


def _bandwidth(settings: Settings) -> Measurement:
    """Compare with a loop over the same arrays that is a lower bound for any update."""
    workload = one_array(settings.elements(_BEYOND_CACHES))
    ours = Ours(workload, settings.threads)
    ours.step()
    pairs = interleave(ours.step, MemoryLoop(ours, settings.threads).step, settings)
    check_usual(ours.moments(), "our moments")
    bytes_touched = 28 * workload.elements
    speed = sorted(bytes_touched / peer for _, peer in pairs if peer is not None)[len(pairs) // 2]
    notes = {"our threads": ours.threads(), "the loop's memory traffic": f"{speed / 1e9:.1f} GB/s"}
    return Measurement(pairs, {**sizes(workload), **notes})


CASES: tuple[Case, ...] = (
    *_flat("100k", "one array of 100 thousand", _IN_CACHES, torch_bar=0.35),
    *_flat("1m", "one array of 1 million", 1_000_000, torch_bar=0.8),
    *_flat("50m", "one array of 50 million", _BEYOND_CACHES, torch_bar=1.02),
    Case(
        name="flat/roots",
        title="one array of 100 thousand, share of the speed of roots and divisions",
        peer=memory_loop.NAME_WITH_ROOTS,
        quantity=Quantity.FRACTION,
        run=_roots,
    ),
    Case(
        name="flat/50m/loop",
        title="one array of 50 million, share of memory speed",
        peer=memory_loop.NAME,
        quantity=Quantity.FRACTION,
        bar=Bar(0.9, at_least=True),
        run=_bandwidth,
    ),
)
