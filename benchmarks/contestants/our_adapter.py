"""numba_adam.torch.Adam over one list of tensors, in memory that NumPy allocated, as PyTorch's fused kernel gets it."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.contestant import BETAS, EPS, LR, load
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.contestants.ours import threads_of_a_step
from benchmarks.workload import Workload


class OurAdapter(OnTensors):
    """The `torch.optim.Optimizer` of this library."""

    def __init__(
        self,
        workload: Workload,
        threads: int,  # noqa: ARG002 - NUMBA_NUM_THREADS sets it
        **options: Any,
    ) -> None:
        torch = load("torch")
        from numba_adam.torch import Adam  # imports torch, which may be missing

        params = parameters(torch, workload)
        super().__init__(params, Adam(params, lr=LR, betas=BETAS, eps=EPS, **options))

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return threads_of_a_step()


class OurAdapter8bit(OurAdapter):
    """The same with 8-bit state."""

    moment_keys = ("exp_avg_scale", "exp_avg_sq_scale")

    def __init__(self, workload: Workload, threads: int) -> None:
        super().__init__(workload, threads, state_dtype="8bit")
