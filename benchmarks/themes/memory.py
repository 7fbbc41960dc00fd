"""The memory that a step needs in addition to its arrays. Linux only, because it reads the kernel's peak value.

Each figure comes from its own process: `python -m benchmarks.themes.memory WHO ELEMENTS THREADS`.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

from benchmarks.case import Bar, Case, Measurement, MissingError, Quantity, Settings, Unit
from benchmarks.contestants import bitsandbytes_8bit
from benchmarks.contestants.bitsandbytes_8bit import BitsAndBytes8bit
from benchmarks.contestants.contestant import Contestant, Maker
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.whole_phase import OurPhase
from benchmarks.process import output_of
from benchmarks.themes.comparison import PEERS, sizes
from benchmarks.themes.formats import BFLOAT16, EIGHT_BIT
from benchmarks.workload import one_array

_ELEMENTS = 50_000_000
_PROCESSES = 3
_WARM_UP_STEPS = 3
_MOST_BYTES = 4_000_000
_RESET_PEAK = "5"  # Linux, Documentation/filesystems/proc.rst: "reset the peak resident set size (high water mark)"


def growth_of_a_step(contestant: Contestant) -> int:
    """Return the bytes that a step adds to the peak of this process's resident memory.

    Raises:
        MissingError: this system has no peak value that can be reset.
    """
    for _ in range(_WARM_UP_STEPS):
        contestant.step()
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError as error:
        raise MissingError(f"the peak of resident memory cannot be reset here: {error.strerror}") from error
    before = _peak_bytes()
    contestant.step()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise MissingError("this system does not say how high resident memory has been")
    return int(match[1]) * 1024


def _measure(ours: str, peer: str | None, settings: Settings) -> Measurement:
    elements = settings.elements(_ELEMENTS)
    pairs: list[tuple[float, float | None]] = [
        (_growth(ours, elements, settings), None if peer is None else _growth(peer, elements, settings))
        for _ in range(_PROCESSES)
    ]
    return Measurement(pairs, sizes(one_array(elements)))


def _growth(who: str, elements: int, settings: Settings) -> int:
    answer = output_of("-m", "benchmarks.themes.memory", who, str(elements), str(settings.threads))
    if answer.startswith("missing "):
        raise MissingError(answer.removeprefix("missing "))
    return int(answer)


_OURS: dict[str, tuple[str, Maker]] = {
    "ours": ("", Ours),
    "8bit": (", 8-bit state", functools.partial(Ours, **EIGHT_BIT)),
    "bfloat16": (", bfloat16", functools.partial(Ours, **BFLOAT16)),
    "phase": (", the whole phase", OurPhase),
}
_EIGHT_BIT_PEERS: dict[str, tuple[str, Maker]] = {"bitsandbytes": (bitsandbytes_8bit.NAME, BitsAndBytes8bit)}
_MAKERS = {key: maker for key, (_, maker) in (*_OURS.items(), *PEERS.items(), *_EIGHT_BIT_PEERS.items())}


def _case(ours: str, peer: str | None = None, label: str = "") -> Case:
    return Case(
        name=f"memory/50m/{peer or ours}",
        title=f"memory that a step adds at its peak, 50 million{_OURS[ours][0]}",
        peer=label,
        quantity=Quantity.VALUE,
        unit=Unit.BYTES,
        bar=None if peer else Bar(_MOST_BYTES),
        run=functools.partial(_measure, ours, peer),
    )


CASES: tuple[Case, ...] = (
    *(_case(key) for key in _OURS),
    *(_case("ours", key, label) for key, (label, _) in PEERS.items()),
    *(_case("8bit", key, label) for key, (label, _) in _EIGHT_BIT_PEERS.items()),
)


def main() -> None:
    """Print the growth for the contestant in the arguments."""
    who, elements, threads = sys.argv[1:]
    try:
        print(growth_of_a_step(_MAKERS[who](one_array(int(elements)), int(threads))))
    except MissingError as reason:
        print(f"missing {reason}")


if __name__ == "__main__":
    main()
