"""torch.optim.Adam(fused=True) over one list of tensors, which lie in NumPy's memory as ours do."""

from __future__ import annotations

from benchmarks.contestants.contestant import BETAS, EPS, LR, load
from benchmarks.contestants.on_tensors import OnTensors, parameters
from benchmarks.workload import Workload

NAME = "torch.optim.Adam(fused=True)"


class TorchFused(OnTensors):
    """PyTorch's own fused kernel for the CPU."""

    def __init__(self, workload: Workload, threads: int) -> None:
        torch = load("torch")
        torch.set_num_threads(threads)
        params = parameters(torch, workload)
        super().__init__(params, torch.optim.Adam(params, lr=LR, betas=BETAS, eps=EPS, fused=True))
