"""Time per parameter from 100 thousand to a billion: ours in three formats on one thread and on all, and the peers.

Each size takes turns with 10 million elements of the same, or with the peer at the same size. The table shows the
largest size. Sizes with arrays that do not fit into free memory are skipped. `curves` makes the plot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.case import Bar, Case, Measurement, MissingError, Settings
from benchmarks.contestants import bitsandbytes_8bit, deepspeed_cpu, memory_loop, torch_fused
from benchmarks.contestants.bitsandbytes_8bit import BitsAndBytes8bit
from benchmarks.contestants.deepspeed_cpu import DeepSpeedCPU
from benchmarks.contestants.memory_loop import MemoryLoop
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.torch_fused import TorchFused
from benchmarks.measure import interleave
from benchmarks.statistics import summarise
from benchmarks.themes.formats import BFLOAT16, EIGHT_BIT
from benchmarks.workload import Repeated, Workload, check_usual

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 100_000_000, 1_000_000_000)
BEYOND_CACHES = 10_000_000
SHARE_OF_MEMORY = 0.85
BYTES_EACH = 16.5  # largest memory for each element, including temporary arrays
_PARTS_OF_A_CASE = 10  # each size takes this fraction of a case's time
_FEWEST_PAIRS = 5
_FLAT = 1.1  # "flat" means within a tenth


class Format(NamedTuple):
    """A number format of our arrays."""

    label: str
    options: dict[str, Any]  # options of the contestant


FORMATS = {
    "float32": Format("float32", {}),
    "bfloat16": Format("bfloat16", BFLOAT16),
    "8bit": Format("8-bit state", EIGHT_BIT),
}


class Peer(NamedTuple):
    """A peer that is compared at each size."""

    label: str
    make: Callable[[Workload, int], Any]
    largest: int  # largest size at which a step takes less than a second
    ours: Format = FORMATS["float32"]  # our format in the comparison


def _loop(workload: Workload, threads: int) -> MemoryLoop:
    """Make the memory loop over arrays like those of an update."""
    ours = Ours(workload, threads)
    ours.step()
    return MemoryLoop(ours, threads)


PEERS = {
    "loop": Peer(memory_loop.NAME, _loop, 100_000_000),
    "torch": Peer(torch_fused.NAME, TorchFused, 100_000_000),
    "deepspeed": Peer(deepspeed_cpu.NAME, DeepSpeedCPU, 100_000_000),
    "bitsandbytes": Peer(bitsandbytes_8bit.NAME, BitsAndBytes8bit, 10_000_000, FORMATS["8bit"]),
}


def name_of_ours(key: str, threads: int) -> str:
    """Return the name of our contestant in a format."""
    return f"ours, {FORMATS[key].label}, {threads} thread{'s' * (threads > 1)}"


def fitting_sizes(settings: Settings, largest: int) -> list[int]:
    """Return the sizes for a quick run, a slow contestant and the free memory; at least one."""
    fitting = int(SHARE_OF_MEMORY * free_bytes() / BYTES_EACH) - BEYOND_CACHES
    most = min(settings.elements(largest), fitting)
    return [size for size in SIZES if size <= most] or [most]


def free_bytes() -> int:
    """Return the bytes of memory that are available.

    Raises:
        MissingError: this system does not report it.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError as error:
        raise MissingError("this system does not say how much memory is free") from error
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _brief(settings: Settings) -> Settings:
    pairs = min(_FEWEST_PAIRS, settings.fewest_pairs)
    return replace(settings, seconds=settings.seconds / _PARTS_OF_A_CASE, fewest_pairs=pairs)


def _flatness(key: str, settings: Settings) -> Measurement:
    """Compare our time per parameter at each size with that at 10 million."""

    def made(elements: int) -> Ours:
        return Ours(Repeated(((elements,),)), settings.threads, **FORMATS[key].options)

    base_size = settings.elements(BEYOND_CACHES)
    base = made(base_size)
    points = []
    for size in fitting_sizes(settings, SIZES[-1]):
        pairs = interleave(made(size).step, base.step, _brief(settings))
        points.append((float(size), summarise([ours for ours, _ in pairs]).median))
    check_usual(base.moments(), "our moments")  # larger arrays repeat the same numbers
    per_parameter = [(ours / size, peer / base_size if peer else None) for ours, peer in pairs]
    notes = per_size(name_of_ours(key, settings.threads), points)
    return Measurement(per_parameter, {**notes, "our threads": base.threads()})


def _against(peer: Peer, settings: Settings) -> Measurement:
    """Compare ours with a peer at each size."""
    points = []
    for size in fitting_sizes(settings, peer.largest):
        workload = Repeated(((size,),))
        theirs = peer.make(workload, settings.threads)
        ours = Ours(workload, settings.threads, **peer.ours.options)
        pairs = interleave(ours.step, theirs.step, _brief(settings))
        points.append((float(size), summarise([seconds for _, seconds in pairs if seconds]).median))
        del ours, theirs  # free them before the next are made
    return Measurement(pairs, per_size(peer.label, points))


def per_size(whose: str, points: Sequence[tuple[float, float]]) -> dict[str, str]:
    """Return seconds of a step by its size as notes."""
    return {f"{whose}, {size:,.0f}": f"{seconds / size * 1e9:.3f} ns per parameter" for size, seconds in points}


def _flatness_case(key: str, threads: int | None) -> Case:
    label = f"{FORMATS[key].label}{', one thread' * (threads == 1)}"
    return Case(
        name=f"scaling/{key}/{'one-thread' if threads == 1 else 'all-threads'}",
        title=f"time per parameter, up to a billion as memory allows, {label}",
        peer="the same at 10 million",
        bar=Bar(_FLAT),
        threads=threads,
        run=functools.partial(_flatness, key),
    )


def _peer_case(key: str, peer: Peer) -> Case:
    return Case(
        name=f"scaling/{key}",
        title=f"one array of {peer.largest // 1_000_000} million, {peer.ours.label}",
        peer=peer.label,
        run=functools.partial(_against, peer),
    )


CASES: tuple[Case, ...] = (
    *(_flatness_case(key, threads) for threads in (None, 1) for key in FORMATS),
    *(_peer_case(key, peer) for key, peer in PEERS.items()),
)
