"""Times a step on the GPU: ours, PyTorch's, Apex's and bitsandbytes', interleaved with a plain copy."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import numba_adam as na
from benchmarks.gpu.device import copier, on_gpu, seconds, synchronize
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.lenders import installed
from benchmarks.gpu.stages import Item
from numba_adam.cuda import seam
from numba_adam.numerics.eight_bit import BLOCK

COPY = 64 if seam.SIMULATED else 100_000_000  # float32 elements
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "8bit": 1 + 4 / BLOCK}
LEAST_ROUNDS, MOST_ROUNDS, CASE_SECONDS = 3, 15, 4.0  # interleaved
# ResNet-50: weights of its convolutions, two vectors for each batch normalisation, and the last layer's pair.
_STAGES = ((64, 64, 256, 3), (256, 128, 512, 4), (512, 256, 1024, 6), (1024, 512, 2048, 3))

Step = Callable[[], object]


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


class Case(NamedTuple):
    """What is timed."""

    name: str
    sizes: Sequence[int]
    number: str = "float32"  # of parameters and gradients
    state: str = ""  # format of our moments, and of bitsandbytes'; "" for that of the parameters
    is_whole_phase: bool = False  # unscale, clip the norm, update, average, and write a 16-bit copy

    @property
    def peer_state(self) -> str:
        """The format of the moments of PyTorch and Apex: that of the parameters, always."""
        return self.number

    def moved(self, state: str) -> float:
        """Return the bytes that one update must read and write: four arrays in, three out; the phase's too."""
        item, moment = _ITEM_BYTES[self.number], _ITEM_BYTES[state or self.number]
        extra = 4 + 2 * 4 + 2 if self.is_whole_phase else 0  # the gradients once more, the average, the copy
        return sum(self.sizes) * (3 * item + 4 * moment + extra)


def cases() -> list[Case]:
    """Return all cases, the most important ones first."""
    if seam.SIMULATED:
        flat, many = [Case("one array of 64", [64])], Case("3 arrays of 16", [16] * 3)
        return [*flat, many, Case("the whole phase, one array of 64", [64], is_whole_phase=True)]
    sizes = {"1 million": 1_000_000, "10 million": 10_000_000, "100 million": 100_000_000, "500 million": 500_000_000}
    flat = [Case(f"one array of {name}", [size]) for name, size in sizes.items()]
    large = [100_000_000]
    return [
        flat[2],
        Case("1,000 arrays of 1,000", [1000] * 1000),
        Case("ResNet-50's 161 arrays", resnet50()),
        Case("the whole phase, one array of 100 million", large, is_whole_phase=True),
        Case("the whole phase, ResNet-50's 161 arrays", resnet50(), is_whole_phase=True),
        Case("bfloat16 with float32 state, one array of 100 million", large, "bfloat16", "float32"),
        Case("8-bit state, one array of 100 million", large, state="8bit"),
        flat[1],
        flat[0],
        flat[3],
        Case("bfloat16 throughout, one array of 100 million", large, "bfloat16"),
        Case("bfloat16, 8-bit state, one array of 100 million", large, "bfloat16", "8bit"),
    ]


def items() -> Iterator[Item]:
    """Return one question for each case, and for what a launch costs."""
    for case in cases():
        yield Item(case.name, partial(_timed, case))
    for count in (1, 1000):
        sizes = [16] * min(3, count) if seam.SIMULATED else [1000] * count
        yield Item(f"what a step costs the host, arrays of 1,000: {count:,}", partial(_launches, sizes))


def _arrays(case: Case, value: float) -> list[Any]:
    """Return arrays of normal nonzero numbers: PyTorch's tensors where it is installed, else our own arrays."""
    torch = installed("torch")
    if torch is not None:
        dtype = getattr(torch, case.number)
        return [torch.full((size,), value, dtype=dtype, device="cuda") for size in case.sizes]
    code = int(np.float32(value).view(np.uint32)) >> 16
    values = (code, np.uint16) if case.number == "bfloat16" else (value, case.number)
    return [on_gpu(np.full(size, *values)) for size in case.sizes]


def ours(case: Case) -> Step:
    """Return our step, as a user calls it, with its validation of gradients."""
    options: dict[str, Any] = {"state_dtype": case.state} if case.state else {}
    call: dict[str, Any] = {}
    if case.is_whole_phase:
        options |= {"ema_decay": 0.999, "low_precision_copy": "bfloat16"}
        call = {"loss_scale": 1024.0, "max_grad_norm": 1.0}
    opt = na.AdamW(_arrays(case, 0.5), **options)
    grads = _arrays(case, 0.01)
    return lambda: opt.step(grads, **call)


def torch_fused(case: Case) -> Step | None:
    """Return a step of PyTorch's fused AdamW; None without PyTorch for CUDA."""
    return _torch_step(case, lambda torch, params: torch.optim.AdamW(params, weight_decay=0.01, fused=True))


def torch_foreach(case: Case) -> Step | None:
    """Return a step of PyTorch's foreach AdamW."""
    return _torch_step(case, lambda torch, params: torch.optim.AdamW(params, weight_decay=0.01, foreach=True))


def apex_fused(case: Case) -> Step | None:
    """Return a step of Apex's FusedAdam; None without Apex."""
    try:
        apex = importlib.import_module("apex.optimizers")
    except ImportError:
        return None
    return _torch_step(case, lambda _, params: apex.FusedAdam(params, weight_decay=0.01, adam_w_mode=True))


def bitsandbytes_8bit(case: Case) -> Step | None:
    """Return a step of bitsandbytes' 8-bit AdamW; None without bitsandbytes."""
    try:
        bitsandbytes = importlib.import_module("bitsandbytes.optim")
    except Exception:  # it raises several kinds when it finds no library for this CUDA
        return None
    return _torch_step(case, lambda _, params: bitsandbytes.AdamW8bit(params, weight_decay=0.01))


def _torch_step(case: Case, make: Callable[[Any, Any], Any]) -> Step | None:
    torch = installed("torch")
    if torch is None:
        return None
    params = [param.requires_grad_() for param in _arrays(case, 0.5)]
    for param, grad in zip(params, _arrays(case, 0.01), strict=True):
        param.grad = grad
    opt = make(torch, params)
    if not case.is_whole_phase:
        return lambda: opt.step()
    averages = [param.detach().clone() for param in params]
    copies = [param.detach().to(torch.bfloat16) for param in params]
    grads = [param.grad for param in params]
    inverse, found = (torch.full((), value, device="cuda") for value in (1.0, 0.0))  # gradients keep their size

    def phase() -> None:
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, inverse)
        torch.nn.utils.clip_grad_norm_(params, 1e9, foreach=True)
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 0.001)
            torch._foreach_copy_(copies, params)

    return phase


@dataclass(frozen=True)
class Timing:
    """One contestant in one case."""

    contestant: str
    seconds: float  # median over the rounds
    gigabytes_per_second: float
    of_copy: float  # bandwidth relative to a copy in the same round; median over the rounds
    of_torch: float | None  # time relative to PyTorch's fused AdamW in the same round; median over the rounds


def _timed(case: Case) -> Finding:
    """Measure one case: all contestants and the copy take turns in every round."""
    contestants = {
        "numba-adam": ours(case),
        "torch fused": torch_fused(case),
        "torch foreach": torch_foreach(case),
        "apex": apex_fused(case),
        "bitsandbytes": bitsandbytes_8bit(case) if case.state == "8bit" else None,
    }
    present = {name: step for name, step in contestants.items() if step is not None}
    found = rounds_of(present, 3 if seam.SIMULATED else max(3, min(200, int(2e9 / case.moved(case.state)))))
    timings = [_timing(case, name, found) for name in present]
    said = "; ".join(
        f"{each.contestant} {each.seconds * 1e3:.3f} ms, {each.gigabytes_per_second:,.0f} GB/s, "
        f"{each.of_copy:.2f} of a copy" + ("" if each.of_torch is None else f", {each.of_torch:.2f} of torch fused")
        for each in timings
    )
    return Finding(said, None, {"timings": [asdict(each) for each in timings], "rounds": len(found)})


def rounds_of(steps: dict[str, Step], repeats: int, budget: float = CASE_SECONDS) -> list[dict[str, float]]:
    """Let steps and a copy take turns; return the seconds of each in every round."""
    copy, _ = copier(COPY)
    found: list[dict[str, float]] = []
    begin = time.perf_counter()
    while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() - begin < budget):
        found.append({"copy": seconds(copy, 3), **{name: seconds(step, repeats) for name, step in steps.items()}})
    return found


def _timing(case: Case, name: str, rounds: list[dict[str, float]]) -> Timing:
    median = statistics.median(each[name] for each in rounds)
    moved = case.moved(case.state if name in ("numba-adam", "bitsandbytes") else case.peer_state)
    of_copy = statistics.median((moved / each[name]) / (8 * COPY / each["copy"]) for each in rounds)
    has_torch = "torch fused" in rounds[0]
    of_torch = statistics.median(each[name] / each["torch fused"] for each in rounds) if has_torch else None
    return Timing(name, median, moved / median / 1e9, of_copy, of_torch)


def _launches(sizes: list[int]) -> Finding:
    """Measure the seconds until a step is queued, without waiting for the GPU."""
    case = Case("", sizes)
    steps = {"numba-adam": ours(case), "torch fused": torch_fused(case), "torch foreach": torch_foreach(case)}
    present, calls = {name: step for name, step in steps.items() if step is not None}, 2 if seam.SIMULATED else 50
    found: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(LEAST_ROUNDS + 2):
        for name, step in present.items():
            step()
            synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                step()
            found[name].append((time.perf_counter() - begin) / calls)
            synchronize()
    medians = {name: statistics.median(times) for name, times in found.items()}
    return Finding("; ".join(f"{name} {each * 1e6:.1f} us" for name, each in medians.items()), None, medians)
