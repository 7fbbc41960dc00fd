"""bitsandbytes' 8-bit Adam on the CPU. Its state has blocks of 256 and is decoded and encoded as whole arrays."""

from __future__ import annotations

from benchmarks.contestants.contestant import BETAS, EPS, LR, load
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Workload

NAME = "bitsandbytes Adam8bit"


class BitsAndBytes8bit(OnTensors):
    """Parameters and gradients in float32."""

    moment_keys = ("absmax1", "absmax2")

    def __init__(self, workload: Workload, threads: int) -> None:
        torch, optim = load("torch"), load("bitsandbytes.optim")
        torch.set_num_threads(threads)
        params = parameters(torch, workload)
        super().__init__(params, optim.Adam8bit(params, lr=LR, betas=BETAS, eps=EPS))
