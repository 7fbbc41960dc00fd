"""A second step compiles nothing, whatever has changed but the dtype and the presence of AMSGrad's array.

Runs in new processes and counts what is there, compiled or loaded: otherwise what is compiled could hide in what other
tests have compiled, in the process or in the cache.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import gc
import itertools

import numpy as np
import numba_adam as na
from numba.core.dispatcher import Dispatcher

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


def loaded():
    "Every signature of every compiled function of this process, ours and Numba's."
    functions = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    return {(id(each), each.py_func.__qualname__, signature) for each in functions for signature in each.overloads}


before = loaded()
runs = []
for dtype, amsgrad in VARIANTS:
    functional(dtype, amsgrad, 3, step=1)
    for params in (arrays(dtype, 3, 1000), arrays(dtype, 7, 300_000)):  # one thread; all threads
        runs.append((na.Adam(params, amsgrad=amsgrad), params))
        step(*runs[-1])
first = loaded()
for opt, params in runs:
    opt.param_groups[0].update(lr=0.1, weight_decay=0.01, eps=1e-6, betas=(0.5, 0.9))
    step(opt, params, grad_scale=0.5)
    opt.step({name: None if name in ("3", "7") else np.ones_like(param) for name, param in params.items()})
for dtype, amsgrad in VARIANTS:
    other = arrays(dtype, 1, 2, 65_536, 500_000)
    step(na.AdamW(other, lr=1, eps_mode="algorithm1", maximize=True, amsgrad=amsgrad), other)
    functional(dtype, amsgrad, 500_000, step=np.int64(3), lr=1, weight_decay=0.1, grad_scale=0.5)
print(len(first - before))
print(loaded() - first)
"""


def test_a_second_step_compiles_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=800)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert int(first) >= 4, "every dtype, on one thread and on all: they must be found, or this test sees nothing"
    assert second == "set()"


FORMATS_PROGRAM = """
import importlib, itertools, pkgutil, sys

import ml_dtypes
import numpy as np
import numba_adam as na
import numba_adam.cpu.kernels
from numba.core.dispatcher import Dispatcher

kernels = numba_adam.cpu.kernels
modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
GRADS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint16)
PARAMS, KINDS = {
    "float32": (
        (np.float32, np.float16, ml_dtypes.bfloat16, np.uint16),
        (
            {"ema_decay": 0.9, "amsgrad": True},
            {"state_dtype": "bfloat16"},
            {"state_dtype": "8bit"},
            {"rounding": "stochastic"},
            {"master_weights": True, "ema_decay": 0.9},
            {"low_precision_copy": "float16"},
            {"low_precision_copy": "bfloat16", "amsgrad": True},
        ),
    ),
    "float64": (
        (np.float32, np.float64),
        (
            {"state_dtype": "float64", "ema_decay": 0.9, "amsgrad": True},
            {"state_dtype": "float64", "low_precision_copy": "float16"},
            {"state_dtype": "float64", "low_precision_copy": "bfloat16", "rounding": "stochastic"},
        ),
    ),
}[sys.argv[1]]


def loaded():
    kernels = {id(each): each for m in modules for each in vars(m).values() if isinstance(each, Dispatcher)}
    return {each.py_func.__qualname__ + each.py_func.__module__: len(each.overloads) for each in kernels.values()}


def all_steps(kinds, params, grads, sizes, **options):
    for kind, param, grad in itertools.product(kinds, params, grads):
        try:
            opt = na.Adam([np.ones(size, param) for size in sizes], **kind)
        except na.errors.DtypeError:
            continue
        opt.step([np.ones(size, grad) for size in sizes], **options)
        opt.load_state_dict(opt.state_dict())
        opt.step([np.ones(size, grad) for size in sizes], max_grad_norm=1.0)


for sizes in ((3,), (300_000,)):  # on one thread; on all
    all_steps(KINDS[:2], PARAMS, GRADS[:2], sizes, loss_scale=2.0)
    all_steps(({},), [sys.argv[1]], [sys.argv[1]], sizes)
    all_steps(({},), [sys.argv[1]], [sys.argv[1]], sizes, clip_value=1.0)
    all_steps(({"state_dtype": "8bit"},) if sys.argv[1] == "float32" else (), PARAMS[:1], GRADS[:1], sizes)
first = loaded()
for sizes in ((1, 5, 0), (200_000, 7)):
    all_steps(KINDS, PARAMS, GRADS, sizes, loss_scale=3.0, clip_value=1.0, zero_grad=True)
second = loaded()
print(sum(first.values()))
print([name for name in second if second[name] != first[name]])
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_mixture_of_formats_compiles_another_kernel(dtype: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORMATS_PROGRAM, dtype],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert run.returncode == 0, run.stderr
    count, more = run.stdout.splitlines()
    assert int(count) > 5, "kernels must be found, or this test sees nothing"
    assert more == "[]"
