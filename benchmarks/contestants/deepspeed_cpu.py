"""DeepSpeedCPUAdam. Its C++ code is compiled at its first use, which is not timed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.contestants.contestant import BETAS, EPS, LR, load, missing
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Workload

NAME = "DeepSpeedCPUAdam"


class DeepSpeedCPU(OnTensors):
    """DeepSpeed's vectorized Adam for the CPU, with L2 decay instead of its default AdamW."""

    def __init__(self, workload: Workload, threads: int) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it looks for CUDA
        # It runs `ninja`, which pip installed in the interpreter's folder.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        torch = load("torch")
        torch.set_num_threads(threads)
        adam = load("deepspeed.ops.adam")
        params = parameters(torch, workload)
        try:
            optimizer = adam.DeepSpeedCPUAdam(params, lr=LR, betas=BETAS, eps=EPS, adamw_mode=False)
        except Exception as error:  # from the compiler, or from loading its result
            raise missing("DeepSpeedCPUAdam", error) from error
        super().__init__(params, optimizer)
