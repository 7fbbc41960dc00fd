"""torchao's 8-bit Adam on the CPU: state in blocks of 256; the step compiled by torch.compile, which needs g++.

It quantizes the state of arrays with a multiple of 256 elements, at least 4,096, and keeps all other state in float32.
"""

from __future__ import annotations

from benchmarks.case import MissingError
from benchmarks.contestants.contestant import BETAS, EPS, LR, concrete, load, missing
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Array, Workload

NAME = "torchao Adam8bit"


class TorchAO8bit(OnTensors):
    """Parameters and gradients in float32. Its first step compiles for half a minute, and is not timed."""

    def __init__(self, workload: Workload, threads: int) -> None:
        torch, optim = load("torch"), load("torchao.optim")
        torch.set_num_threads(threads)
        params = parameters(torch, workload)
        super().__init__(params, optim.Adam8bit(params, lr=LR, betas=BETAS, eps=EPS))
        try:
            self.step()
        except Exception as error:  # torch._inductor raises many kinds
            raise missing("torchao's Adam8bit, which compiles C++ at its first step,", error) from error
        if not all(hasattr(state["exp_avg"], "codes") for state in self._optimizer.state.values()):
            raise MissingError("torchao keeps the state of arrays in float32 whose size 256 does not divide")

    def moments(self) -> list[Array]:
        """Return the scales of the moments' blocks."""
        states = self._optimizer.state.values()
        return concrete([state[key].scale for key in self.moment_keys for state in states])
