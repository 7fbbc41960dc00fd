"""Checks that a second process loads every kernel that a first one compiled, and times the first launches in both.

python -m benchmarks.gpu.kept runs one process. It launches each kernel with empty work and prints the results as JSON.
NUMBA_CACHE_DIR sets its folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.gpu.device import synchronize
from benchmarks.gpu.kernels import ROOM, Kernel, every_kernel
from numba_adam.cuda import seam
from numba_adam.cuda.batches import queue
from numba_adam.cuda.memory import buffer_of
from numba_adam.cuda.streams import LEGACY


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


def first_launches() -> list[Launch]:
    """Launch every kernel in this process."""
    room = buffer_of(np.ones(ROOM, np.int64), 0, LEGACY)
    synchronize()
    return [_launch(kernel, room.address) for kernel in every_kernel()]


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


def in_two_processes() -> list[Kept]:
    """Launch every kernel in two new processes, one after the other, which share a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        return compared(_in_a_new_process(folder), _in_a_new_process(folder))


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


def _in_a_new_process(folder: str) -> list[Launch]:
    """Return the launches of a new process. It writes its log and its errors to stderr."""
    command = [sys.executable, "-m", "benchmarks.gpu.kept"]
    run = subprocess.run(
        command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, stdout=subprocess.PIPE, text=True, check=True
    )
    return [Launch(*launch) for launch in json.loads(run.stdout.splitlines()[-1])]


if __name__ == "__main__":
    print(json.dumps(first_launches()))
