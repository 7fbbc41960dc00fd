"""A second step compiles nothing, whatever has changed but the dtype and the presence of AMSGrad's array.

Runs in a new process with an empty cache: otherwise what is compiled could hide in what other tests have compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import itertools

import numpy as np
import numba_adam as na
from numba.core import event

VARIANTS = list(itertools.product(("float32", "float64"), (False, True)))
random = np.random.default_rng(0)


def arrays(dtype, *sizes):
    return {str(size): random.standard_normal(size).astype(dtype) for size in sizes}


def step(opt, params, **options):
    opt.step({name: np.ones_like(param) for name, param in params.items()}, **options)


def functional(dtype, amsgrad, size, **options):
    param, grad, exp_avg, exp_avg_sq, extra = np.ones((5, size), dtype)
    options |= {"max_exp_avg_sq": extra} if amsgrad else {}
    na.adam_update(param, grad, exp_avg, exp_avg_sq, **options)


with event.install_recorder("numba:compile") as first:
    runs = []
    for dtype, amsgrad in VARIANTS:
        functional(dtype, amsgrad, 3, step=1)
        for params in (arrays(dtype, 3, 1000), arrays(dtype, 7, 300_000)):  # one thread; all threads
            runs.append((na.Adam(params, amsgrad=amsgrad), params))
            step(*runs[-1])

with event.install_recorder("numba:compile") as second:
    for opt, params in runs:
        opt.param_groups[0].update(lr=0.1, weight_decay=0.01, eps=1e-6, betas=(0.5, 0.9))
        step(opt, params, grad_scale=0.5)
        opt.step({name: None if name in ("3", "7") else np.ones_like(param) for name, param in params.items()})
    for dtype, amsgrad in VARIANTS:
        other = arrays(dtype, 1, 2, 65_536, 500_000)
        step(na.AdamW(other, lr=1, eps_mode="algorithm1", maximize=True, amsgrad=amsgrad), other)
        functional(dtype, amsgrad, 500_000, step=np.int64(3), lr=1, weight_decay=0.1, grad_scale=0.5)

print(len(first.buffer), len(second.buffer))
for _, what in second.buffer:
    print(what.data)
"""


def test_a_second_step_compiles_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    first, second = run.stdout.splitlines()[0].split()
    assert int(first) > 0, "the recorder must see the first compilation, or this test sees nothing"
    assert int(second) == 0, run.stdout
