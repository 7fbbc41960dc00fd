"""The same step with other sizes of thread blocks and of chunks, to see what the defaults cost on this GPU."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.gpu import speed
from benchmarks.gpu.device import on_gpu
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.speed import Case
from benchmarks.gpu.stages import Item
from numba_adam import Hyperparameters
from numba_adam.cuda import batches, seam
from numba_adam.cuda.kernels.layout import CHUNK
from numba_adam.cuda.memory import zero_moment
from numba_adam.cuda.table import CudaTable
from numba_adam.numerics.formats import Format

_THREADS = (seam.THREADS,) if seam.SIMULATED else (128, 256, 512)
_CHUNKS = (CHUNK, 2048) if seam.SIMULATED else (2048, 4096, 8192, 16_384, 65_536)
_SECONDS = 1.0


def items() -> Iterator[Item]:
    """Return one question for each case that has one array: its kernel takes any chunk."""
    size = 64 if seam.SIMULATED else 100_000_000
    cases = (Case("float32", [size]), Case("8-bit state", [size], state="8bit"), Case("bfloat16", [size], "bfloat16"))
    for case in cases:
        yield Item(f"{case.name}, one array of {size:,}", partial(_tuned, case))
    yield Item(f"strict rounding, one array of {size:,}", partial(_strict, size))


def _tuned(case: Case) -> Finding:
    step, default = speed.ours(case), (seam.THREADS, CHUNK)
    found = {}
    try:
        for threads, chunk in itertools.product(_THREADS, _CHUNKS):
            _set(threads, chunk)
            rounds = speed.rounds_of({"step": step}, 3, _SECONDS)
            moved = case.moved(case.state)
            ratios = [(moved / each["step"]) / (8 * speed.COPY / each["copy"]) for each in rounds]
            found[f"{threads} threads, chunks of {chunk}"] = statistics.median(ratios)
    finally:
        _set(*default)
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    said = "; ".join(f"{name}: {ratio:.3f} of a copy" for name, ratio in ordered)
    return Finding(f"{said} (the default is {default[0]} threads, chunks of {default[1]})", None, found)


def _strict(size: int) -> Finding:
    """Compare with a kernel in which the compiler fuses multiplications with additions: other bits."""
    steps: dict[str, speed.Step] = {}
    for name, contract in (("strict", False), ("fused", True)):
        param, grad = on_gpu(np.full(size, 0.5, np.float32)), on_gpu(np.full(size, 0.01, np.float32))
        moments = [zero_moment(param, Format.FLOAT32) for _ in range(2)]
        table = CudaTable([param], [moments[0]], [moments[1]], hyperparameters=[Hyperparameters()], contract=contract)
        steps[name] = partial(table.step, [grad])
    rounds = speed.rounds_of(steps, 3, 3 * _SECONDS)
    ratio = statistics.median(each["strict"] / each["fused"] for each in rounds)
    return Finding(f"{ratio:.3f} of the time with multiplications and additions fused", None, {"ratio": ratio})


def _set(threads: int, chunk: int) -> None:
    """Let the next launches have thread blocks and chunks of these sizes."""
    seam.THREADS = threads
    batches.CHUNK = chunk  # type: ignore[attr-defined]  # it is layout's, as this module reads it
