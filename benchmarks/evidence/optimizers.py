"""The contestants: Adam with its state in float32 or 8 bits, ours and the peers', over NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

import numba_adam as na
from benchmarks.case import MissingError
from benchmarks.contestants.contestant import BETAS, EPS, LR, load, missing
from benchmarks.workload import Array
from numba_adam.cpu.conversion import decode, encode

SMALLEST_QUANTISED = 4096  # elements: torchao leaves smaller arrays in float32


class Optimizer(Protocol):
    """Updates the arrays that it was made with, where they lie."""

    def step(self, grads: Sequence[Array]) -> object:
        """Make one step."""

    def in_8_bits(self) -> int:
        """Return how many parameters have their state in 8 bits; after a step."""


class Ours:
    """numba_adam.AdamW with its state in a format."""

    def __init__(self, arrays: Sequence[Array], weight_decay: float, state_dtype: str = "8bit") -> None:
        self.optimizer = na.AdamW(
            list(arrays),
            lr=LR,
            betas=BETAS,
            eps=EPS,
            weight_decay=weight_decay,
            eps_mode="algorithm1",
            state_dtype=state_dtype,  # type: ignore[arg-type]
        )

    def step(self, grads: Sequence[Array]) -> object:
        """Make one step."""
        return self.optimizer.step(list(grads))

    def in_8_bits(self) -> int:
        """Return how many parameters have their state in 8 bits."""
        states = self.optimizer.state.values()
        return sum(state["exp_avg"].size for state in states if state["exp_avg"].dtype == np.uint8)


class Nearest(Ours):
    """Our code without its dither: float32 state that goes through the nearest codes and back after every step."""

    def __init__(self, arrays: Sequence[Array], weight_decay: float) -> None:
        super().__init__(arrays, weight_decay, "float32")

    def step(self, grads: Sequence[Array]) -> object:
        """Make one step."""
        result = super().step(grads)
        for state in self.optimizer.state.values():
            moments = decode(*encode(state["exp_avg"], state["exp_avg_sq"]))
            for name, values in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                state[name][...] = values
        return result

    def in_8_bits(self) -> int:
        """Return how many parameters have a state that 8 bits hold."""
        return sum(state["exp_avg"].size for state in self.optimizer.state.values())


class OnTorch:
    """An optimizer of PyTorch's kind; `make` gets the parameters as tensors in the arrays' memory."""

    def __init__(self, arrays: Sequence[Array], make: Callable[[list[Any]], Any]) -> None:
        self._torch = load("torch")
        self._params = [self._torch.nn.Parameter(self._torch.from_numpy(array)) for array in arrays]
        self._optimizer = make(self._params)

    def step(self, grads: Sequence[Array]) -> object:
        """Make one step."""
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = self._torch.from_numpy(np.ascontiguousarray(grad))
        return self._optimizer.step()

    def in_8_bits(self) -> int:
        """Return how many parameters have their state in 8 bits."""
        return sum(param.numel() for param in self._params if _is_quantised(self._optimizer.state[param]))


def _is_quantised(state: dict[str, Any]) -> bool:
    """Say whether a peer keeps a parameter's state in codes: bitsandbytes names it so, torchao's tensors have such."""
    return "absmax1" in state or hasattr(state.get("exp_avg"), "codes")


def bitsandbytes(arrays: Sequence[Array], weight_decay: float) -> Optimizer:
    """Return bitsandbytes' AdamW8bit that quantises everything, however small."""
    optim = load("bitsandbytes.optim")
    options = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay, "min_8bit_size": 1}
    return OnTorch(arrays, lambda params: optim.AdamW8bit(params, **options))


def torchao(arrays: Sequence[Array], weight_decay: float) -> Optimizer:
    """Return torchao's AdamW8bit."""
    optim = load("torchao.optim")
    options = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
    return OnTorch(arrays, lambda params: optim.AdamW8bit(params, **options))


class Contestant(NamedTuple):
    """One of those that are compared."""

    name: str
    make: Callable[[Sequence[Array], float], Optimizer]  # (arrays, weight_decay)


FLOAT32 = Contestant("float32 state", lambda arrays, decay: Ours(arrays, decay, "float32"))
EIGHT_BIT = Contestant("numba-adam, 8 bits", Ours)
NEAREST = Contestant("the same, nearest", Nearest)
BITSANDBYTES = Contestant("bitsandbytes", bitsandbytes)
TORCHAO = Contestant("torchao", torchao)
ALL = (FLOAT32, EIGHT_BIT, BITSANDBYTES, TORCHAO)


def missing_ones(contestants: Sequence[Contestant]) -> dict[str, str]:
    """Return why those contestants cannot run here that cannot."""
    reasons = {}
    for contestant in contestants:
        try:
            _try(contestant)
        except MissingError as error:
            reasons[contestant.name] = str(error)
    return reasons


def _try(contestant: Contestant) -> None:
    """Make one step over an array that everybody quantises.

    Raises:
        MissingError: the contestant does not run here.
    """
    array = np.ones(SMALLEST_QUANTISED, np.float32)
    optimizer = contestant.make([array], 0.0)
    try:
        optimizer.step([np.ones_like(array)])
    except Exception as error:  # torch._inductor's, of many kinds: without a C++ compiler InvalidCxxCompiler
        raise missing(contestant.name, error) from error
    if contestant is not FLOAT32 and optimizer.in_8_bits() != array.size:
        raise MissingError(f"{contestant.name} does not quantise {array.size} parameters")
