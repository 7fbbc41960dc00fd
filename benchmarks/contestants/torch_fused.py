"""torch.optim.Adam(fused=True) over one list of tensors, in memory that NumPy allocated, like ours."""

from __future__ import annotations

from benchmarks.contestants.contestant import BETAS, EPS, LR, load
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Workload

NAME = "torch.optim.Adam(fused=True)"
NAME_BFLOAT16 = "torch.optim.Adam(fused=True), bfloat16"


class TorchFused(OnTensors):
    """PyTorch's fused CPU kernel. Its state has the parameters' format."""

    def __init__(self, workload: Workload, threads: int, *, bfloat16: bool = False) -> None:
        torch = load("torch")
        torch.set_num_threads(threads)
        params = parameters(torch, workload, bfloat16=bfloat16)
        super().__init__(params, torch.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS, fused=True))
