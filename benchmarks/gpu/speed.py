"""Times a step on the GPU: ours, PyTorch's fused AdamW, Apex's and bitsandbytes', interleaved with a plain copy."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.correctness import torch_on_gpu
from benchmarks.gpu.device import copier, on_gpu, seconds
from numba_adam import Hyperparameters
from numba_adam.cuda import seam
from numba_adam.cuda.memory import zero_moment
from numba_adam.cuda.table import CudaTable
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import Format

FLAT = [64] if seam.SIMULATED else [1_000_000, 10_000_000, 50_000_000, 200_000_000]
MANY = [16] * 3 if seam.SIMULATED else [1000] * 1000
COPY = 64 if seam.SIMULATED else 100_000_000  # float32 elements
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "8bit": 1 + 4 / BLOCK}
ROUNDS = 2 if seam.SIMULATED else 15  # interleaved
# ResNet-50: weights of its convolutions, two vectors for each batch normalisation, and the last layer's pair.
_STAGES = ((64, 64, 256, 3), (256, 128, 512, 4), (512, 256, 1024, 6), (1024, 512, 2048, 3))


@dataclass(frozen=True)
class Timing:
    """One contestant in one case."""

    case: str
    contestant: str
    seconds: float  # median over the rounds
    gigabytes_per_second: float
    of_copy: float  # bandwidth relative to a copy in the same round; median over the rounds
    of_torch: float | None  # time relative to PyTorch's fused AdamW in the same round; median over the rounds


def resnet50() -> list[int]:
    """Return the sizes of ResNet-50's 161 parameters."""
    sizes = [3 * 64 * 49, 64, 64]
    for inputs, middle, outputs, blocks in _STAGES:
        for block in range(blocks):
            before = inputs if block == 0 else outputs
            sizes += [before * middle, middle, middle, middle * middle * 9, middle, middle]
            sizes += [middle * outputs, outputs, outputs]
            sizes += [before * outputs, outputs, outputs] if block == 0 else []
    return [*sizes, 2048 * 1000, 1000]


def ours(
    sizes: Sequence[int], number: str = "float32", state: str = "", *, contract: bool = False
) -> Callable[[], object]:
    """Return our step, as a user calls it, including the validation of gradients.

    Args:
        sizes: sizes of the arrays.
        number: format of parameters and gradients.
        state: format of the moments; "" for the same.
        contract: let the compiler fuse multiplications with additions.
    """
    dtype = np.uint16 if number == "bfloat16" else np.dtype(number)
    params = [on_gpu(np.zeros(size, dtype)) for size in sizes]
    moments = [[zero_moment(param, Format.named(state or number)) for param in params] for _ in range(2)]
    options = Hyperparameters(weight_decay=0.01, decoupled_weight_decay=True)
    table = CudaTable(params, moments[0], moments[1], hyperparameters=[options], contract=contract)
    grads = [on_gpu(ones(size, number)) for size in sizes]
    return lambda: table.step(grads)


def ones(size: int, number: str) -> Any:
    """Return gradients of normal nonzero numbers; bfloat16 as its bits."""
    return np.full(size, 0x3C00, np.uint16) if number == "bfloat16" else np.full(size, 0.01, number)


def torch_fused(sizes: Sequence[int], number: str = "float32") -> Callable[[], object] | None:
    """Return a step of PyTorch's fused AdamW; None without PyTorch for CUDA."""
    return _torch_step(sizes, number, lambda torch, params: torch.optim.AdamW(params, weight_decay=0.01, fused=True))


def apex_fused(sizes: Sequence[int], number: str = "float32") -> Callable[[], object] | None:
    """Return a step of Apex's FusedAdam; None without Apex."""
    try:
        apex = importlib.import_module("apex.optimizers")
    except ImportError:
        return None
    return _torch_step(sizes, number, lambda _, params: apex.FusedAdam(params, weight_decay=0.01, adam_w_mode=True))


def bitsandbytes_8bit(sizes: Sequence[int], number: str = "float32") -> Callable[[], object] | None:
    """Return a step of bitsandbytes' 8-bit AdamW; None without bitsandbytes."""
    try:
        bitsandbytes = importlib.import_module("bitsandbytes.optim")
    except ImportError:
        return None
    return _torch_step(sizes, number, lambda _, params: bitsandbytes.AdamW8bit(params, weight_decay=0.01))


def _torch_step(sizes: Sequence[int], number: str, make: Callable[[Any, Any], Any]) -> Callable[[], object] | None:
    torch = torch_on_gpu()
    if torch is None:
        return None
    dtype = getattr(torch, number)
    params = [torch.zeros(size, dtype=dtype, device="cuda", requires_grad=True) for size in sizes]
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    optimizer = make(torch, params)
    return lambda: optimizer.step()


@dataclass(frozen=True)
class _Case:
    name: str
    sizes: Sequence[int]
    number: str = "float32"
    state: str = ""  # format of the moments; "" for the same

    def bytes(self, state: str) -> float:
        """Return the bytes that a step reads and writes: four arrays in, three out, with moments of a format."""
        item, moment = _ITEM_BYTES[self.number], _ITEM_BYTES[state or self.number]
        return sum(self.sizes) * (3 * item + 4 * moment)


def cases() -> list[_Case]:
    """Return all cases."""
    flat = [_Case(f"one array of {size:,}", [size]) for size in FLAT]
    narrow = [_Case(f"one array of {size:,}, bfloat16 throughout", [size], "bfloat16") for size in FLAT[-2:]]
    many = [_Case(f"{len(MANY):,} arrays of {MANY[0]:,}", MANY)]
    codes = [_Case(f"one array of {size:,}, 8-bit state", [size], state="8bit") for size in FLAT[-2:]]
    codes += [_Case(f"{case.name}, bfloat16, 8-bit state", case.sizes, "bfloat16", "8bit") for case in flat[-1:]]
    return [*flat, *narrow, *codes, *many, *([] if seam.SIMULATED else [_Case("ResNet-50's 161 arrays", resnet50())])]


def timings(case: _Case) -> list[Timing]:
    """Measure one case: all contestants and the copy take turns in every round."""
    copy, copied_bytes = copier(COPY)
    contestants: dict[str, Callable[[], object] | None] = {
        "numba-adam": ours(case.sizes, case.number, case.state),
        "numba-adam, contracted": ours(case.sizes, case.number, case.state, contract=True),
        "torch fused": torch_fused(case.sizes, case.number),
        "apex": apex_fused(case.sizes, case.number),
        "bitsandbytes": bitsandbytes_8bit(case.sizes, case.number) if case.state == "8bit" else None,
    }
    present = {name: step for name, step in contestants.items() if step is not None}
    repeats = 1 if seam.SIMULATED else max(3, min(200, int(2e9 / case.bytes(case.state))))
    rounds = [
        {"copy": seconds(copy, 3), **{name: seconds(step, repeats) for name, step in present.items()}}
        for _ in range(ROUNDS)
    ]
    return [_timing(case, name, rounds, copied_bytes) for name in present]


def _timing(case: _Case, name: str, rounds: list[dict[str, float]], copied_bytes: int) -> Timing:
    median = statistics.median(each[name] for each in rounds)
    # All peers but bitsandbytes keep their moments in the parameters' format.
    moved = case.bytes("" if name in ("torch fused", "apex") else case.state)
    of_copy = statistics.median((moved / each[name]) / (copied_bytes / each["copy"]) for each in rounds)
    has_torch = "torch fused" in rounds[0]
    of_torch = statistics.median(each[name] / each["torch fused"] for each in rounds) if has_torch else None
    return Timing(case.name, name, median, moved / median / 1e9, of_copy, of_torch)
