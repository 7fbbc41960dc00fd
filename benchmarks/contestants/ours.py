"""numba_adam.Adam over NumPy arrays."""

from __future__ import annotations

from typing import Any

import numba_adam as na
from benchmarks.contestants.contestant import BETAS, EPS, LR
from benchmarks.workload import Array, Workload


class Ours:
    """One array when the workload has one, else a list."""

    def __init__(self, workload: Workload, threads: int) -> None:  # noqa: ARG002 - NUMBA_NUM_THREADS says it
        self._params, self._grads = workload.params(), workload.grads()
        single = len(self._params) == 1
        params: Any = self._params[0] if single else self._params
        self._given: Any = self._grads[0] if single else self._grads
        self.optimizer = na.Adam(params, lr=LR, betas=BETAS, eps=EPS, eps_mode="algorithm1")

    def step(self) -> object:
        """Make one step."""
        return self.optimizer.step(self._given)

    def threads(self) -> str:
        """Return the number of threads that a step takes."""
        from numba_adam.kernels import threads

        return f"{threads.thread_count()} ({threads.threading_layer() or 'one only'})"

    def params(self) -> list[Array]:
        """Return the parameters."""
        return self._params

    def grads(self) -> list[Array]:
        """Return the gradients."""
        return self._grads

    def moments(self) -> list[Array]:
        """Return the moments: all first ones, then all second ones."""
        states = self.optimizer.state.values()
        return [state[key] for key in ("exp_avg", "exp_avg_sq") for state in states]
