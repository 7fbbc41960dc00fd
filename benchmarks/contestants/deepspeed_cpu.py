"""DeepSpeedCPUAdam, whose C++ is compiled at its first use. Never timed: warming up comes first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.contestants.contestant import BETAS, EPS, LR, load, missing
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Workload

NAME = "DeepSpeedCPUAdam"


class DeepSpeedCPU(OnTensors):
    """DeepSpeed's vectorised Adam for the CPU, in Adam's mode rather than AdamW's, its default."""

    def __init__(self, workload: Workload, threads: int) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for CUDA
        # It runs `ninja`, which pip has put beside the interpreter.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        torch = load("torch")
        torch.set_num_threads(threads)
        adam = load("deepspeed.ops.adam")
        params = parameters(torch, workload)
        try:
            optimizer = adam.DeepSpeedCPUAdam(params, lr=LR, betas=BETAS, eps=EPS, adamw_mode=False)
        except Exception as error:  # the compiler's, or what loading its result raises
            raise missing("DeepSpeedCPUAdam", error) from error
        super().__init__(params, optimizer)
