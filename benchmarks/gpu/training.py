"""The same training on the GPU and on the CPU, through the public optimizer, compared bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np

import numba_adam as na
from benchmarks.gpu.bits import compared, draw
from benchmarks.gpu.device import Array, synchronize
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.lenders import OURS, Lender
from numba_adam.cuda import seam

STEPS = 3
# Around every border: a group of lanes, a warp, a block of 8-bit state, a thread block, a chunk of the grid.
_SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 513, 1023, 1024, 1025, 4097)
BORDERS = (*_SMALL, 16_383, 16_384, 16_385, 65_537, 1_000_003)
SIZES: tuple[int, ...] = (3, 40, 0, 17) if seam.SIMULATED else BORDERS


def trained(
    *,
    number: str = "float32",
    grad: str | None = None,
    lender: Lender | Sequence[Lender] = OURS,
    sizes: Sequence[int] = SIZES,
    steps: int = STEPS,
    call: dict[str, Any] | None = None,
    within: AbstractContextManager[Any] | None = None,
    accumulate: int = 0,
    **options: Any,
) -> Finding:
    """Train AdamW on both, and compare parameters, state, step counts and results.

    Args:
        number: the format of the parameters.
        grad: that of the gradients. Default: the same.
        lender: the kind of array on the GPU, for all or for each in turn.
        sizes: sizes of the arrays.
        steps: number of steps.
        call: keyword arguments of each step.
        within: a context for the steps on the GPU, such as a stream.
        accumulate: number of micro-batches of each step; 0 gives the gradients to the step itself.
        options: of the optimizer.
    """
    rng, call = np.random.default_rng(11), call or {}
    turns = [lender] if isinstance(lender, Lender) else lender
    kinds = [turns[k % len(turns)] for k in range(len(sizes))]
    copies = [draw(rng, size, number) for size in sizes]
    others: list[str] = []
    with within or nullcontext():
        params = [kind.lend(copy) for kind, copy in zip(kinds, copies, strict=True)]
        gpu, cpu = na.AdamW(params, **options), na.AdamW(copies, **options)
        for step in range(steps):
            batches = [[draw(rng, size, grad or number) for size in sizes] for _ in range(max(1, accumulate))]
            lent = [[kind.lend(one) for kind, one in zip(kinds, grads, strict=True)] for grads in batches]
            ours, theirs = (_stepped(opt, given, accumulate, call) for opt, given in ((gpu, lent), (cpu, batches)))
            if (ours.applied, ours.grad_norm) != (theirs.applied, theirs.grad_norm):
                others.append(f"step {step} gave {ours}, on the CPU {theirs}")
            for kind, one, grads in zip(kinds * len(batches), chain(*lent), chain(*batches), strict=True):
                if not np.array_equal(kind.back(one).view(np.uint8), grads.view(np.uint8)):
                    others.append(f"a gradient of size {grads.size} differs after step {step}")
        synchronize()
    ours_found, others_found = state_of(gpu), state_of(cpu)
    if list(ours_found) != list(others_found):
        others.append(f"the state has {list(ours_found)}, on the CPU {list(others_found)}")
        return Finding("; ".join(others), False)
    back = [kind.back(param) for kind, param in zip(kinds, params, strict=True)]
    return compared([*back, *ours_found.values()], [*copies, *others_found.values()], others=others)


def _stepped(opt: Any, batches: Sequence[Any], accumulate: int, call: dict[str, Any]) -> Any:
    if not accumulate:
        return opt.step(batches[0], **call)
    for grads in batches:
        opt.accumulate(grads)
    return opt.step(**call)


def state_of(opt: Any) -> dict[str, Array]:
    """Return every array of a state dict, and the step counts, by name."""
    found = {}
    for key, state in opt.state_dict()["state"].items():
        for name, value in sorted(state.items()):
            array = np.asarray(value)
            found[f"{name} of {key}"] = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
    return found
