"""numba_adam.Adam over NumPy arrays."""

from __future__ import annotations

from typing import Any

import numba_adam as na
from benchmarks.contestants.contestant import BETAS, EPS, LR
from benchmarks.workload import Array, Workload, bfloat16_bits, widened


class Ours:
    """Our optimizer over one array, or over a list if the workload has several."""

    def __init__(
        self,
        workload: Workload,
        threads: int,  # noqa: ARG002 - NUMBA_NUM_THREADS sets it
        *,
        bfloat16: bool = False,
        **options: Any,
    ) -> None:
        """Make the optimizer.

        Args:
            workload: the arrays.
            threads: number of threads of a step.
            bfloat16: True: parameters and gradients are bfloat16, given as bits.
            options: more arguments of `numba_adam.Adam`.
        """
        self._params, self._grads = workload.params(), workload.grads()
        if bfloat16:
            self._params, self._grads = ([bfloat16_bits(a) for a in arrays] for arrays in (self._params, self._grads))
        single = len(self._params) == 1
        params: Any = self._params[0] if single else self._params
        self._given: Any = self._grads[0] if single else self._grads
        self.optimizer = na.Adam(params, lr=LR, betas=BETAS, eps=EPS, eps_mode="algorithm1", **options)

    def step(self) -> object:
        """Make one step."""
        return self.optimizer.step(self._given)

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return threads_of_a_step()

    def params(self) -> list[Array]:
        """Return the parameters: views if they are float32, otherwise float32 copies."""
        return [widened(param) for param in self._params]

    def grads(self) -> list[Array]:
        """Return the gradients themselves, not copies."""
        return self._grads

    def moments(self) -> list[Array]:
        """Return the moments: all first ones, then all second ones; for 8-bit state, the scales of its blocks."""
        states = self.optimizer.state.values()
        return [widened(state.get(f"{key}_scale", state[key])) for key in ("exp_avg", "exp_avg_sq") for state in states]

    def bytes_held(self) -> int:
        """Return the bytes of parameters, gradients and state."""
        states = [entry for state in self.optimizer.state.values() for entry in state.values()]
        return sum(entry.nbytes for entry in (*self._params, *self._grads, *states) if hasattr(entry, "nbytes"))


def threads_of_a_step() -> str:
    """Return the number of threads of our kernels, and the threading layer."""
    from numba_adam.cpu.kernels import threads

    return f"{threads.thread_count()} ({threads.threading_layer() or 'one only'})"
