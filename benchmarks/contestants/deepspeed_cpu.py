"""DeepSpeedCPUAdam, whose C++ is compiled at its first use. Never timed: warming up comes first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.contestants.contestant import BETAS, EPS, LR, concrete, load, missing
from benchmarks.contestants.torch_fused import parameters
from benchmarks.workload import Array, Workload

NAME = "DeepSpeedCPUAdam"


class DeepSpeedCPU:
    """DeepSpeed's vectorised Adam for the CPU, in Adam's mode rather than AdamW's, its default."""

    def __init__(self, workload: Workload, threads: int) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for CUDA
        # It runs `ninja`, which pip has put beside the interpreter.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        torch = load("torch")
        torch.set_num_threads(threads)
        adam = load("deepspeed.ops.adam")
        self._params = parameters(torch, workload)
        try:
            self._optimizer = adam.DeepSpeedCPUAdam(self._params, lr=LR, betas=BETAS, eps=EPS, adamw_mode=False)
        except Exception as error:  # the compiler's, or what loading its result raises
            raise missing("DeepSpeedCPUAdam", error) from error

    def step(self) -> object:
        """Make one step."""
        return self._optimizer.step()

    def threads(self) -> str:
        """Return the number of threads that a step takes."""
        return str(load("torch").get_num_threads())

    def params(self) -> list[Array]:
        """Return the parameters."""
        return concrete([param.detach() for param in self._params])

    def moments(self) -> list[Array]:
        """Return the moments."""
        states = self._optimizer.state.values()
        return concrete([state[key] for key in ("exp_avg", "exp_avg_sq") for state in states])
