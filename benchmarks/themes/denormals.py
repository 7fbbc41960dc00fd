"""Vanished gradients: how much longer a step takes while the moments decay towards zero.

Both contestants get one gradient with magnitudes from 1e-12 down to 1e-44 along the array, and zeros afterwards. This
fills the second moments, and some of the first ones, with subnormal numbers, unless the optimizer prevents them. Many
CPUs are a hundred times slower with subnormal numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants import torch_fused
from benchmarks.contestants.contestant import Maker
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.torch_fused import TorchFused
from benchmarks.measure import interleave
from benchmarks.themes.formats import BFLOAT16, EIGHT_BIT, TorchBFloat16, workload_of
from benchmarks.workload import Array, Workload, check_usual

_ELEMENTS = 10_000_000
_LARGEST_EXPONENT, _SMALLEST_EXPONENT = -12.0, -44.0
_MOST = 1.1  # our limit: vanished gradients may take a tenth more time than normal ones


class Vanishing(Workload):
    """A workload with nearly vanished gradients."""

    def grads(self) -> list[Array]:
        """Return gradients that decrease along each array."""
        return [_vanishing(grad) for grad in super().grads()]


def _vanishing(grad: Array) -> Array:
    exponents = np.linspace(_LARGEST_EXPONENT, _SMALLEST_EXPONENT, grad.size, dtype=np.float64)
    return (100 * grad * 10 ** exponents.reshape(grad.shape)).astype(np.float32)


def _vanished(maker: Maker, workload: Workload, threads: int) -> Any:
    """Return a contestant with gradients that vanish after its first step."""
    contestant: Any = maker(Vanishing(workload.shapes), threads)
    contestant.step()
    for grad in contestant.grads():
        grad[...] = 0
    return contestant


def _subnormal(contestant: Any) -> str:
    """Return the fraction of a contestant's moments that is subnormal."""
    moments = [np.abs(moment) for moment in contestant.moments()]
    tiny = np.finfo(np.float32).tiny
    count = sum(int(np.count_nonzero((moment > 0) & (moment < tiny))) for moment in moments)
    return f"{count / sum(moment.size for moment in moments):.1%}"


def _against_ordinary(maker: Maker, settings: Settings) -> Measurement:
    """Compare a contestant with vanished gradients to itself with normal ones."""
    workload = workload_of(_ELEMENTS, settings)
    ordinary: Any = maker(workload, settings.threads)
    vanished = _vanished(maker, workload, settings.threads)
    pairs = interleave(vanished.step, ordinary.step, settings)
    check_usual(ordinary.moments(), "the ordinary moments")
    return Measurement(pairs, {"elements": f"{workload.elements:,}", "subnormal moments": _subnormal(vanished)})


def _against_peer(ours: Maker, peer: Maker, settings: Settings) -> Measurement:
    """Compare our step with a peer's, both with vanished gradients."""
    workload = workload_of(_ELEMENTS, settings)
    theirs = _vanished(peer, workload, settings.threads)
    own = _vanished(ours, workload, settings.threads)
    pairs = interleave(own.step, theirs.step, settings)
    notes = {"our subnormal moments": _subnormal(own), "the peer's subnormal moments": _subnormal(theirs)}
    return Measurement(pairs, {"elements": f"{workload.elements:,}", **notes})


_OURS: dict[str, tuple[str, Maker]] = {
    "float32": ("float32", Ours),
    "bfloat16": ("bfloat16", functools.partial(Ours, **BFLOAT16)),
    "8bit": ("8-bit state", functools.partial(Ours, **EIGHT_BIT)),
}
_TORCH: dict[str, tuple[str, Maker]] = {
    "float32": (torch_fused.NAME, TorchFused),
    "bfloat16": (torch_fused.NAME_BFLOAT16, TorchBFloat16),
    "8bit": (f"{torch_fused.NAME}, float32", TorchFused),
}


def _case(name: str, title: str, peer: str, run: Any, bar: Bar | None = None) -> Case:
    return Case(name=f"denormals/{name}", title=title, peer=peer, bar=bar, run=run)


def _cases(key: str) -> tuple[Case, ...]:
    """Return the cases of a format: ours against ourselves, ours against PyTorch, PyTorch against itself."""
    label, ours = _OURS[key]
    torch_label, torch = _TORCH[key]
    title = f"gradients vanished, 10 million, {label}"
    ordinary = functools.partial(_against_ordinary, ours)
    return (
        _case(f"{key}/ordinary", title, "ours over ordinary gradients", ordinary, Bar(_MOST)),
        _case(f"{key}/torch", title, f"{torch_label}, vanished too", functools.partial(_against_peer, ours, torch)),
    )


def _case_of_torch(key: str) -> Case:
    """Return the case that compares PyTorch with itself."""
    label, maker = _TORCH[key]
    title = f"gradients vanished, 10 million: {label}, not ours"
    return _case(
        f"{key}/torch-ordinary", title, "itself over ordinary gradients", functools.partial(_against_ordinary, maker)
    )


CASES: tuple[Case, ...] = (
    *(case for key in _OURS for case in _cases(key)),
    _case_of_torch("float32"),
    _case_of_torch("bfloat16"),
)
