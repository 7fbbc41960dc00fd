"""The first step of a new process, as a program makes it: with an empty kernel cache, and with a full one.

python -m benchmarks.gpu.first runs such a process, and prints seconds as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.gpu.journal import Finding
from benchmarks.gpu.stages import Item


def items() -> Iterator[Item]:
    """The first float32 step, cold and warm."""
    yield Item("the first float32 step of a process", _cold_and_warm)


def _cold_and_warm() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_in_a_new_process(folder) for _ in range(2))
    said = "; ".join(
        f"{name}: {each['import']:.2f} s to import, {each['first']:.2f} s for the first step, {each['second']:.4f} s "
        "for the second"
        for name, each in (("empty cache", cold), ("full cache", warm))
    )
    return Finding(said, None, {"cold": cold, "warm": warm})


def _in_a_new_process(folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.gpu.first"]
    run = subprocess.run(
        command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _step() -> dict[str, float]:
    import numpy as np

    begin = time.perf_counter()
    import numba_adam as na
    from benchmarks.gpu.device import on_gpu, synchronize
    from numba_adam.cuda import seam

    size = 64 if seam.SIMULATED else 1_000_000
    param, grad = on_gpu(np.zeros(size, np.float32)), on_gpu(np.full(size, 0.01, np.float32))
    synchronize()
    times = [begin, time.perf_counter()]
    opt = na.AdamW(param)
    for _ in range(2):
        opt.step(grad)
        synchronize()
        times.append(time.perf_counter())
    imported, first, second = (after - before for before, after in itertools.pairwise(times))
    return {"import": imported, "first": first, "second": second}


if __name__ == "__main__":
    print(json.dumps(_step()))
