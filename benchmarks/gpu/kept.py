"""Compiles every kernel, in several processes at once, and checks that a later process loads them all.

python -m benchmarks.gpu.kept FIRST STEP runs one process: it launches every STEP-th kernel from FIRST on with empty
work, and prints the results as JSON. NUMBA_CACHE_DIR sets its folder.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.gpu.device import synchronize
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.kernels import ROOM, Kernel, every_kernel
from benchmarks.gpu.stages import Item
from numba_adam.cuda import seam
from numba_adam.cuda.batches import queue
from numba_adam.cuda.memory import buffer_of
from numba_adam.cuda.streams import LEGACY

_PROCESSES = 1 if seam.SIMULATED else min(8, os.cpu_count() or 1)


class Launch(NamedTuple):
    """A kernel's first launch in a process."""

    kernel: str
    seconds: float  # to make, load or compile, and run it
    loaded: int  # number of loads from the folder
    compiled: int


@dataclass(frozen=True)
class Kept:
    """A kernel's first launches in two processes, the second after the first."""

    kernel: str
    cold_seconds: float
    warm_seconds: float
    is_kept: bool  # the first one compiled it, and the second one loaded it


def items() -> Iterator[Item]:
    """Compile all kernels; then load them."""
    cold: list[Launch] = []
    yield Item(f"every kernel, in {_PROCESSES} processes", lambda: _compiled(cold))
    yield Item("every kernel, in the next process", lambda: _loaded(cold))


def _compiled(cold: list[Launch]) -> Finding:
    begin = time.perf_counter()
    cold += in_new_processes(_PROCESSES)
    wall, spent = time.perf_counter() - begin, sum(launch.seconds for launch in cold)
    said = f"{len(cold)} first launches took {spent:.1f} s in all, {wall:.1f} s of wall time"
    return Finding(said, None, {"launches": [launch._asdict() for launch in cold]})


def _loaded(cold: list[Launch]) -> Finding:
    if seam.SIMULATED:
        return Finding("the simulator compiles nothing, so nothing is kept")
    if not cold:
        return Finding("no process has compiled them before", False)
    kernels = compared(cold, in_new_processes(1))
    lost = [kernel.kernel for kernel in kernels if not kernel.is_kept]
    said = f"{len(kernels)} kernels took {sum(kernel.warm_seconds for kernel in kernels):.2f} s; "
    said += f"NOT KEPT: {', '.join(lost)}" if lost else "all were loaded, and none was compiled again"
    return Finding(said, not lost, {"kernels": [asdict(kernel) for kernel in kernels]})


def launches(first: int = 0, step: int = 1) -> list[Launch]:
    """Launch every `step`-th kernel from number `first` on in this process."""
    room = buffer_of(np.ones(ROOM, np.int64), 0, LEGACY)
    synchronize()
    return [_launch(kernel, room.address) for kernel in itertools.islice(every_kernel(), first, None, step)]


def _launch(kernel: Kernel, room: int) -> Launch:
    begin = time.perf_counter()
    made = kernel.make()
    queue(made, 1, seam.THREADS, 0, LEGACY, *kernel.nothing(room))
    synchronize()
    seconds = time.perf_counter() - begin
    if seam.SIMULATED:
        return Launch(kernel.name, seconds, 0, 0)
    loaded, compiled = (sum(counted.values()) for counted in (made.stats.cache_hits, made.stats.cache_misses))
    return Launch(kernel.name, seconds, loaded, compiled)


def in_new_processes(count: int) -> list[Launch]:
    """Launch every kernel once, in `count` new processes at the same time; return the launches in the kernels' order.

    Raises:
        RuntimeError: a process failed; the message has its last line.
    """
    commands = [[sys.executable, "-m", "benchmarks.gpu.kept", str(first), str(count)] for first in range(count)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process ended with status {process.returncode}: {errors.strip()[-300:]}")
    found = [[Launch(*launch) for launch in json.loads(output.splitlines()[-1])] for output, _ in outputs]
    return [launch for turn in itertools.zip_longest(*found) for launch in turn if launch is not None]


def compared(cold: Sequence[Launch], warm: Sequence[Launch]) -> list[Kept]:
    """Return for every kernel whether the second process loaded it instead of compiling it."""
    pairs = [(one, other) for one, other in zip(cold, warm, strict=True) if one.kernel == other.kernel]
    if not pairs or len(pairs) != len(cold):
        raise ValueError(
            f"two processes launched {len(cold)} kernels, of which {len(pairs)} are the same: expected all"
        )
    return [
        Kept(one.kernel, one.seconds, other.seconds, (one[2:], other[2:]) == ((0, 1), (1, 0))) for one, other in pairs
    ]


if __name__ == "__main__":
    print(json.dumps(launches(int(sys.argv[1]), int(sys.argv[2]))))
