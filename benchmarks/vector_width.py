"""Each CPU kernel with vectors of 256 and of 512 bits: `python -m benchmarks.vector_width [TURNS]`.

Two processes take turns. LLVM prefers one width in all kernels of each, through NUMBA_CPU_FEATURES. The figure is the
CPU time of one thread with 512 bits, divided by that with 256 bits: the median of all turns, the least and the largest.
CPU time does not include waiting for other programs. `numba_adam/cpu/kernels/vector_width.py` has what was chosen.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_SIZES = 200_000, 20_000_000  # elements: in the caches, and in memory
_TURNS, _STEPS = 7, 3
_STATE = {"state_dtype": "8bit"}
_CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # parameter, gradient, optimizer, step
    "float32": ("float32", "float32", {}, {}),
    "float64": ("float64", "float64", {}, {}),
    "bfloat16": ("bfloat16", "bfloat16", {"state_dtype": "bfloat16"}, {}),
    "stochastic": ("bfloat16", "bfloat16", {"state_dtype": "bfloat16", "rounding": "stochastic"}, {}),
    "float16": ("float16", "float16", {}, {}),
    "8-bit": ("float32", "float32", _STATE, {}),
    "8-bit, amsgrad": ("float32", "float32", {**_STATE, "amsgrad": True}, {}),
    "norm": ("float32", "float32", {}, {"max_grad_norm": 1.0}),
    "average": ("float32", "float32", {"ema_decay": 0.99}, {}),
    "copy": ("float32", "float32", {"low_precision_copy": "float16"}, {}),
    "accumulation": ("float32", "bfloat16", {}, {}),
    "rows": ("float32", "float32", {}, {}),
}


def _values(size: int, dtype: str) -> Any:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return np.resize(np.random.default_rng(0).standard_normal(2**20, dtype=np.float32), size).astype(kind)


def _rows(size: int) -> Callable[[], object]:
    """Return a step over a twentieth of a table's rows of 16 elements."""
    import numba_adam as na

    tables = [_values(size // 16 * 16, "float32").reshape(-1, 16) for _ in range(3)]
    tables[2] = np.abs(tables[2])
    rows = np.random.default_rng(1).integers(0, len(tables[0]), len(tables[0]) // 20)
    grads = _values(rows.size * 16, "float32").reshape(-1, 16)
    return lambda: na.adam_update_rows(tables[0], rows, grads, tables[1], tables[2], 7)


def _work(case: str, size: int) -> Callable[[], object]:
    """Return a function that does a case's work once."""
    import numba_adam as na

    if case == "rows":
        return _rows(size)
    param, grad, options, step = _CASES[case]
    optimizer, grads = na.Adam([_values(size, param)], **options), [_values(size, grad)]
    if case == "accumulation":
        return lambda: optimizer.accumulate(grads)
    return lambda: optimizer.step(grads, **step)


def _serve() -> None:
    """Answer each line "CASE|SIZE" with the CPU seconds of one step."""
    asked = ""
    work: Callable[[], object] = bool
    for line in sys.stdin:
        if line != asked:
            case, size = line.split("|")
            asked, work = line, _work(case, int(size))
            work()
        repeats = max(1, _SIZES[0] * 10 // int(line.split("|")[1]))
        seconds = []
        for _ in range(_STEPS):
            begin = time.thread_time()
            for _ in range(repeats):
                work()
            seconds.append((time.thread_time() - begin) / repeats)
        print(json.dumps(statistics.median(seconds)), flush=True)


def _start(features: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CPU_FEATURES": features, "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.vector_width", "serve"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen[str], question: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(question)
    process.stdin.flush()
    return float(json.loads(process.stdout.readline()))


def main(turns: int = _TURNS) -> None:
    """Print a line for each case and size."""
    from llvmlite import binding

    from benchmarks.machine import machine

    host = binding.get_host_cpu_features().flatten()
    processes = [_start(f"{host},{sign}prefer-256-bit") for sign in ("+", "-")]
    print(f"{machine()['CPU']}, to LLVM {binding.get_host_cpu_name()}; load {os.getloadavg()[0]:.1f}")
    for case in _CASES:
        for size in _SIZES:
            pairs = [[_ask(process, f"{case}|{size}\n") for process in processes] for _ in range(turns)]
            ratios = sorted(wide / narrow for narrow, wide in pairs)
            narrow, wide = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
            spread = f"{statistics.median(ratios):.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}]"
            print(f"{case:16}{size:>12,}{narrow:>12.1f} us{wide:>12.1f} us   {spread}", flush=True)
    for process in processes:
        process.communicate()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        _serve()
    else:
        main(*map(int, sys.argv[1:]))
