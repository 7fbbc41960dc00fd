"""Compares every kernel's bits on the GPU with the CPU's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import numba_adam as na
from benchmarks.gpu.device import Array, on_gpu, to_host
from numba_adam import Hyperparameters
from numba_adam.cuda import CudaArray, seam
from numba_adam.cuda.table import CudaTable
from numba_adam.optim.scaling import scaling

VARIANTS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "Algorithm 1's eps, L2 decay": {"eps_mode": "algorithm1", "weight_decay": 0.1, "betas": (0.8, 0.97)},
    "AdamW, climbing": {"decoupled_weight_decay": True, "weight_decay": 0.05, "maximize": True, "lr": 0.03},
    "AMSGrad": {"amsgrad": True, "eps": 1e-3},
}
STEPS = 5
FORMATS: dict[str, dict[str, Any]] = {
    "8-bit state": {"state_dtype": "8bit"},
    "8-bit state, AMSGrad": {"state_dtype": "8bit", "amsgrad": True, "ema_decay": 0.9, "seed": 3},
    "bfloat16 state": {"state_dtype": "bfloat16"},
    "bfloat16 state, rounded at random": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 7},
}
SIZES = [(3,), (40, 1, 0, 17)] if seam.SIMULATED else [(1,), (1_000_003,), (40, 1, 0, 17, 70_001, 16_384, 300_000)]


@dataclass(frozen=True)
class Finding:
    """One comparison."""

    what: str
    differing: int  # number of elements with other bits than on the CPU
    elements: int


def draw(rng: np.random.Generator, size: int, dtype: str) -> Array:
    """Return numbers whose magnitudes span many powers of two."""
    return (rng.normal(size=size) * np.exp(rng.uniform(-20, 5, size))).astype(dtype)


def bits(array: Array) -> Array:
    """Return the bits. All NaNs become equal, because their payloads differ between processors."""
    clean = array.copy()
    if clean.dtype.kind == "f":
        clean[np.isnan(clean)] = np.nan
    return clean.view(f"u{clean.itemsize}")


def differing(ours: list[Array], theirs: list[Array]) -> int:
    """Return the number of elements that differ in any bit."""
    return sum(int(np.count_nonzero(bits(a) != bits(b))) for a, b in zip(ours, theirs, strict=True))


def nearest_bfloat16(values: Array) -> Array:
    """Return float32 numbers rounded to bfloat16, to even, as its bits."""
    raw = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((raw + 0x7FFF + ((raw >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def findings() -> Iterator[Finding]:
    """Compare everything."""
    for dtype, variant, sizes, skip in itertools.product(("float32", "float64"), VARIANTS, SIZES, (0, 1)):
        yield _plain(dtype, variant, sizes, skip)
    for number in ("bfloat16", "float16"):
        yield _narrow(number)
    for dtype in ("float32", "float64"):
        yield _clipped(dtype)
    yield _left_out()
    for is_mixed in (False, True):
        yield _optimizer(is_mixed)
    for name, number, sizes, skip in itertools.product(FORMATS, ("float32", "bfloat16"), SIZES[1:], (0, 1)):
        yield _state(name, number, sizes, skip)
    for name in ("8-bit state", "bfloat16 state"):
        yield _state(name, "float32", SIZES[0], 0, accumulate=3)
        yield _state(name, "bfloat16", SIZES[-1], 0, accumulate=3)
    torch = torch_on_gpu()
    if torch is not None:
        yield _captured(torch)


def torch_on_gpu() -> Any:
    """Return PyTorch if it is installed and finds the GPU, otherwise None."""
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _columns(params: list[Array], skip: int = 0) -> list[list[CudaArray]]:
    """Return copies of the parameters on the GPU, and two moments of zeros for each."""
    zeros = [np.zeros_like(param) for param in params]
    return [[on_gpu(array, skip) for array in arrays] for arrays in (params, zeros, zeros)]


def _plain(dtype: str, variant: str, sizes: tuple[int, ...], skip: int) -> Finding:
    """Train arrays that begin `skip` elements after a multiple of 256 bytes."""
    rng = np.random.default_rng(1)
    options = VARIANTS[variant]
    params = [draw(rng, size, dtype) for size in sizes]
    cpu = na.Adam([param.copy() for param in params], **options)
    columns = _columns(params, skip)
    largest = _columns(params, skip)[1] if options.get("amsgrad") else None
    table = CudaTable(columns[0], columns[1], columns[2], largest, hyperparameters=[Hyperparameters(**options)])
    for _ in range(STEPS):
        grads = [draw(rng, size, dtype) for size in sizes]
        cpu.step(grads)
        table.step([on_gpu(grad, skip) for grad in grads])
    states = cpu.state_dict()["state"].values()
    theirs = [*cpu.param_groups[0]["params"], *(state[key] for key in ("exp_avg", "exp_avg_sq") for state in states)]
    ours = [to_host(array) for column in columns for array in column]
    what = f"{dtype}, {variant}, {len(sizes)} arrays" + (", misaligned" if skip else "")
    return Finding(what, differing(ours, theirs), 3 * sum(sizes))


def _narrow(number: str) -> Finding:
    """16-bit parameters and gradients: compare with the rounded float32 update."""
    rng, size = np.random.default_rng(2), SIZES[-1][-1]

    def stored(values: Array) -> Array:
        return nearest_bfloat16(values) if number == "bfloat16" else values.astype(np.float16)

    def loaded(array: Array) -> Array:
        if number == "bfloat16":
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array.astype(np.float32)

    param, grad = (stored(rng.normal(size=size).astype(np.float32)) for _ in range(2))
    wide = [loaded(param), loaded(grad), np.zeros(size, np.float32), np.zeros(size, np.float32)]
    columns = [on_gpu(param), on_gpu(wide[2]), on_gpu(wide[3])]
    na.adam_update(wide[0], wide[1], wide[2], wide[3], step=1)
    table = CudaTable(*([column] for column in columns), hyperparameters=[Hyperparameters()])
    table.step([on_gpu(grad)])
    ours, theirs = [to_host(column) for column in columns], [stored(wide[0]), wide[2], wide[3]]
    return Finding(f"{number} parameters and gradients", differing(ours, theirs), 3 * size)


def _clipped(dtype: str) -> Finding:
    """Compare the global norm, which is summed in the CPU's order, and the clipped step."""
    rng, sizes = np.random.default_rng(3), SIZES[-1]
    params, grads = ([draw(rng, size, dtype) for size in sizes] for _ in range(2))
    cpu = na.Adam([param.copy() for param in params])
    result = cpu.step(grads, max_grad_norm=1.0, loss_scale=4.0)
    columns = _columns(params)
    table = CudaTable(columns[0], columns[1], columns[2], hyperparameters=[Hyperparameters()])
    found = table.step([on_gpu(grad) for grad in grads], scaling(1.0, 4.0, 1.0, None))
    ours = [*(to_host(param) for param in columns[0]), np.array([found.grad_norm])]
    theirs = [*cpu.param_groups[0]["params"], np.array([result.grad_norm])]
    return Finding(f"{dtype}, global norm and clipping", differing(ours, theirs), sum(sizes) + 1)


def _left_out() -> Finding:
    """Check that a non-finite gradient changes no bit."""
    size = SIZES[-1][-1]
    arrays = [np.ones(size, np.float32) for _ in range(3)]
    grad = np.ones(size, np.float32)
    grad[-1] = np.nan
    columns = [on_gpu(array) for array in arrays]
    table = CudaTable(*([column] for column in columns), hyperparameters=[Hyperparameters()])
    result = table.step([on_gpu(grad)], scaling(1.0, 1.0, None, None))
    wrong = differing([to_host(column) for column in columns], arrays)
    return Finding("a step with a NaN is left out", wrong + int(result.applied), 3 * size)


def _optimizer(is_mixed: bool) -> Finding:
    """AdamW with averages, a 16-bit copy and a schedule; then continue from a state dict."""
    rng, sizes = np.random.default_rng(5), SIZES[-1]
    options: dict[str, Any] = {"lr": lambda step: 0.1 / step, "ema_decay": 0.9, "low_precision_copy": "bfloat16"}
    call: dict[str, Any] = {} if is_mixed else {"max_grad_norm": 1.0}  # sums of two parts are added in another order
    copies = [draw(rng, size, "float32") for size in sizes]

    def lent(arrays: list[Array]) -> list[Any]:
        return [array if is_mixed and k % 2 else on_gpu(array) for k, array in enumerate(arrays)]

    params = lent([copy.copy() for copy in copies])
    gpu, cpu = na.AdamW(params, **options), na.AdamW(copies, **options)
    for _ in range(2):
        for _ in range(STEPS):
            grads = [draw(rng, size, "float32") for size in sizes]
            gpu.step(lent(grads), **call)
            cpu.step(grads, **call)
        saved, gpu = gpu.state_dict(), na.AdamW(params, **options)
        gpu.load_state_dict(saved)
    found = [
        [array for state in each.state.values() for key, array in state.items() if key != "step"] for each in (gpu, cpu)
    ]
    ours = [array if isinstance(array, np.ndarray) else to_host(array) for array in (*params, *gpu.low_precision)]
    theirs = [*copies, *(copy.view(np.uint16) for copy in cpu.low_precision)]
    what = "AdamW, on the CPU and the GPU" if is_mixed else "AdamW"
    ours_bits = [array.view(np.uint16) if array.itemsize == 2 else array for array in (*ours, *found[0])]
    return Finding(what, differing(ours_bits, [*theirs, *found[1]]), sum(array.size for array in ours_bits))


def _state(name: str, number: str, sizes: tuple[int, ...], skip: int, accumulate: int = 0) -> Finding:
    """AdamW with 16-bit or 8-bit state, with or without accumulation."""
    rng = np.random.default_rng(6)

    def stored(size: int) -> Array:
        values = draw(rng, size, "float32")
        return nearest_bfloat16(values) if number == "bfloat16" else values

    copies = [stored(size) for size in sizes]
    params = [on_gpu(copy, skip) for copy in copies]
    gpu, cpu = na.AdamW(params, **FORMATS[name]), na.AdamW(copies, **FORMATS[name])
    for _ in range(STEPS):
        for _ in range(max(1, accumulate)):
            grads = [stored(size) for size in sizes]
            for each, lent in ((gpu, [on_gpu(grad, skip) for grad in grads]), (cpu, grads)):
                (each.accumulate if accumulate else each.step)(lent)
        if accumulate:
            gpu.step()
            cpu.step()
    ours, theirs = (
        [array for state in each.state.values() for key, array in sorted(state.items()) if key != "step"]
        for each in (gpu, cpu)
    )
    ours_bits, their_bits = [*(to_host(param) for param in params), *ours], [*copies, *theirs]
    what = f"{name}, {number} parameters, {len(sizes)} arrays" + (", misaligned" if skip else "")
    what += f", {accumulate} micro-batches a step" if accumulate else ""
    plain = [[_plain_bits(array) for array in arrays] for arrays in (ours_bits, their_bits)]
    return Finding(what, differing(*plain), sum(array.size for array in ours_bits))


def _plain_bits(array: Array) -> Array:
    """Return an array with a dtype of NumPy's own: bfloat16 as its bits."""
    return array.view(np.uint16) if array.itemsize == 2 else array


def _captured(torch: Any) -> Finding:
    """Tensors on their own stream: one normal step, then three replays of a captured CUDA graph."""
    size, replays, what = 100_003, 3, "a captured CUDA graph, on PyTorch's tensors"
    rng = np.random.default_rng(4)
    arrays = [draw(rng, size, "float32"), draw(rng, size, "float32"), *np.zeros((2, size), np.float32)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        param, grad, exp_avg, exp_avg_sq = (torch.from_numpy(array).cuda() for array in arrays)
        table = CudaTable([param.requires_grad_()], [exp_avg], [exp_avg_sq], hyperparameters=[Hyperparameters()])
        table.step([grad])
        plan = table.plan([grad])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            table.launch(plan)
        for _ in range(replays):
            graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return Finding(f"{what}: {error}", 3 * size, 3 * size)
    for step in range(1, replays + 2):
        na.adam_update(arrays[0], arrays[1], arrays[2], arrays[3], step=step)
    ours = [tensor.detach().cpu().numpy() for tensor in (param, exp_avg, exp_avg_sq)]
    return Finding(what, differing(ours, [arrays[0], arrays[2], arrays[3]]), 3 * size)
