"""torch.optim.Adam(fused=True) over one list of tensors, which lie in NumPy's memory as ours do."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.contestant import BETAS, EPS, LR, concrete, load
from benchmarks.workload import Array, Workload

NAME = "torch.optim.Adam(fused=True)"


def parameters(torch: Any, workload: Workload) -> list[Any]:
    """Return tensors with their gradients in `.grad`, both in memory that NumPy allocated."""
    params = [torch.from_numpy(array).requires_grad_() for array in workload.params()]
    for param, grad in zip(params, workload.grads(), strict=True):
        param.grad = torch.from_numpy(grad)
    return params


class TorchFused:
    """PyTorch's own fused kernel for the CPU."""

    def __init__(self, workload: Workload, threads: int) -> None:
        torch = load("torch")
        torch.set_num_threads(threads)
        self._params = parameters(torch, workload)
        self._optimizer = torch.optim.Adam(self._params, lr=LR, betas=BETAS, eps=EPS, fused=True)

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
