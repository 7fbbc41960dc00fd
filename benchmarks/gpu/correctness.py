"""Every format and option on the GPU, bit for bit against the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import numba_adam as na
from benchmarks.gpu.bits import compared, draw
from benchmarks.gpu.device import Array, on_gpu, to_host
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.stages import Item
from benchmarks.gpu.training import trained
from numba_adam import Hyperparameters
from numba_adam.cuda import CudaArray, seam
from numba_adam.cuda.table import CudaTable

VARIANTS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "Algorithm 1's eps, L2 decay": {"eps_mode": "algorithm1", "weight_decay": 0.1, "betas": (0.8, 0.97)},
    "AdamW, climbing": {"decoupled_weight_decay": True, "weight_decay": 0.05, "maximize": True, "lr": 0.03},
    "AMSGrad": {"amsgrad": True, "eps": 1e-3},
}
# What an optimizer may be asked for, with the format of the parameters and of the gradients.
TRAININGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float64": {"number": "float64"},
    "bfloat16": {"number": "bfloat16"},
    "float16": {"number": "float16"},
    "8-bit state": {"state_dtype": "8bit"},
    "bfloat16 state": {"state_dtype": "bfloat16"},
    "bfloat16 gradients": {"grad": "bfloat16"},
    "float16 gradients": {"grad": "float16"},
    "average": {"ema_decay": 0.9},
    "bfloat16 copy": {"low_precision_copy": "bfloat16"},
    "float16 copy": {"low_precision_copy": "float16"},
    "bfloat16, master weights": {"number": "bfloat16", "master_weights": True},
    "bfloat16, 8-bit state": {"number": "bfloat16", "state_dtype": "8bit"},
    "bfloat16, rounded at random": {"number": "bfloat16", "rounding": "stochastic", "seed": 5},
    "bfloat16 state, rounded at random": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 7},
    "8-bit state, AMSGrad, average": {"state_dtype": "8bit", "amsgrad": True, "ema_decay": 0.9, "seed": 3},
    "8-bit state, rounded at random": {"number": "bfloat16", "state_dtype": "8bit", "rounding": "stochastic"},
    "AMSGrad, climbing": {"amsgrad": True, "eps_mode": "algorithm1", "maximize": True},
    "float32, float64 state": {"state_dtype": "float64"},
    "float64, float32 state": {"number": "float64", "state_dtype": "float32"},
    "float64, AMSGrad": {"number": "float64", "amsgrad": True},
    "all at once": {
        "number": "bfloat16",
        "state_dtype": "bfloat16",
        "rounding": "stochastic",
        "amsgrad": True,
        "master_weights": True,
        "ema_decay": 0.5,
    },
}
CALLS: dict[str, dict[str, Any]] = {
    "scaled, clipped by value": {"grad_scale": 0.5, "clip_value": 0.3},
    "clipped by the norm": {"max_grad_norm": 0.5},
    "loss scale": {"loss_scale": 8.0},
    "loss scale, norm, gradients set to zero": {"loss_scale": 3.0, "max_grad_norm": 1e9, "zero_grad": True},
}
STEPS = 5
TABLES = [(3,), (40, 1, 0, 17)] if seam.SIMULATED else [(1_000_003,), (40, 1, 0, 17, 70_001, 16_384, 300_000)]
SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0, -1.0)


def items() -> Iterator[Item]:
    """Return all comparisons."""
    for name, options in TRAININGS.items():
        yield Item(f"training, {name}", partial(trained, **options))
    for (name, call), number in itertools.product(CALLS.items(), ("float32", "float64", "bfloat16")):
        yield Item(f"training, {name}, {number}", partial(trained, number=number, call=call))
        if number != "float64":
            yield Item(f"8-bit state, {name}, {number}", partial(trained, number=number, call=call, state_dtype="8bit"))
    for name in ("float32", "float64", "bfloat16", "8-bit state", "bfloat16 state"):
        yield Item(f"training, {name}, three micro-batches a step", partial(trained, accumulate=3, **TRAININGS[name]))
    for number in ("float32", "float64"):
        yield Item(f"special values, {number}", partial(_special, number))
    yield Item("a step with a NaN is left out", _left_out)
    yield Item("a schedule, an average, a copy; continued from a state dict", _continued)
    yield Item("the function", _function)
    yield Item("more arrays than a grid takes at a time", partial(trained, sizes=_many(), steps=2))
    for number, variant, sizes, skip in itertools.product(("float32", "float64"), VARIANTS, TABLES, (0, 1)):
        name = f"{number}, {variant}, {len(sizes)} array{'s' * (len(sizes) > 1)}" + (", misaligned" if skip else "")
        yield Item(name, partial(_table, number, variant, sizes, skip))


def _many() -> tuple[int, ...]:
    return (3, 0, 5) * (4 if seam.SIMULATED else 2000)


def _columns(params: list[Array], skip: int = 0) -> list[list[CudaArray]]:
    """Return copies of the parameters on the GPU, and two moments of zeros for each."""
    zeros = [np.zeros_like(param) for param in params]
    return [[on_gpu(array, skip) for array in arrays] for arrays in (params, zeros, zeros)]


def _table(number: str, variant: str, sizes: tuple[int, ...], skip: int) -> Finding:
    """Train arrays that begin `skip` elements after a multiple of 256 bytes."""
    rng = np.random.default_rng(1)
    options = VARIANTS[variant]
    params = [draw(rng, size, number) for size in sizes]
    cpu = na.Adam([param.copy() for param in params], **options)
    columns = _columns(params, skip)
    largest = _columns(params, skip)[1] if options.get("amsgrad") else None
    table = CudaTable(columns[0], columns[1], columns[2], largest, hyperparameters=[Hyperparameters(**options)])
    for _ in range(STEPS):
        grads = [draw(rng, size, number) for size in sizes]
        cpu.step(grads)
        table.step([on_gpu(grad, skip) for grad in grads])
    states = cpu.state_dict()["state"].values()
    theirs = [*cpu.param_groups[0]["params"], *(state[key] for key in ("exp_avg", "exp_avg_sq") for state in states)]
    return compared([to_host(array) for column in columns for array in column], theirs)


def _special(number: str) -> Finding:
    """Give zeros, subnormal, huge and non-finite numbers as parameters and gradients, in every combination."""
    pairs = np.array(list(itertools.product(SPECIAL, SPECIAL)), number)
    param, grad = (np.ascontiguousarray(column) for column in pairs.T)
    lent, opt = on_gpu(param), na.Adam(param, eps_mode="algorithm1")
    gpu = na.Adam(lent, eps_mode="algorithm1")
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            gpu.step(on_gpu(grad))
            opt.step(grad)
    return compared([to_host(lent)], [param])


def _left_out() -> Finding:
    """A gradient that is not finite changes no bit."""
    size = TABLES[-1][-1]
    params = [np.ones(size, np.float32) for _ in range(2)]
    lent = [on_gpu(param) for param in params]
    opt = na.Adam(lent)
    others = []
    for bad in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        grads = [np.ones(size, np.float32) for _ in range(2)]
        grads[1][-1] = bad
        result = opt.step([on_gpu(grad) for grad in grads], loss_scale=1.0)
        if result.applied:
            others.append(f"a step with {bad} was applied")
    return compared([to_host(array) for array in lent], params, others=others)


def _continued() -> Finding:
    """AdamW with averages, a 16-bit copy and a schedule; then continue from a state dict."""
    rng, sizes = np.random.default_rng(5), TABLES[-1]
    options: dict[str, Any] = {"lr": lambda step: 0.1 / step, "ema_decay": 0.9, "low_precision_copy": "bfloat16"}
    copies = [draw(rng, size, "float32") for size in sizes]
    params = [on_gpu(copy) for copy in copies]
    gpu, cpu = na.AdamW(params, **options), na.AdamW(copies, **options)
    for _ in range(2):
        for _ in range(STEPS):
            grads = [draw(rng, size, "float32") for size in sizes]
            gpu.step([on_gpu(grad) for grad in grads], max_grad_norm=1.0)
            cpu.step(grads, max_grad_norm=1.0)
        saved, gpu = gpu.state_dict(), na.AdamW(params, **options)
        gpu.load_state_dict(saved)
    found = [
        [array for state in each.state.values() for key, array in state.items() if key != "step"] for each in (gpu, cpu)
    ]
    ours = [*(to_host(array) for array in (*params, *gpu.low_precision)), *found[0]]
    return compared(ours, [*copies, *cpu.low_precision, *found[1]])


def _function() -> Finding:
    rng, size = np.random.default_rng(9), TABLES[-1][-1]
    arrays = [draw(rng, size, "float32"), draw(rng, size, "float32"), *np.zeros((3, size), np.float32)]
    lent = [on_gpu(array) for array in arrays]
    for step in (1, 2):
        for four in (lent, arrays):
            param, grad, exp_avg, exp_avg_sq, largest = four
            na.adam_update(param, grad, exp_avg, exp_avg_sq, step, lr=0.1, grad_scale=0.5, max_exp_avg_sq=largest)
    return compared([to_host(array) for array in lent], arrays)
