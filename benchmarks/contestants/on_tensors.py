"""What the contestants that update PyTorch's tensors have in common: the tensors, and what is asked of them."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.contestant import concrete, load
from benchmarks.workload import Array, Workload


def parameters(torch: Any, workload: Workload) -> list[Any]:
    """Return tensors with their gradients in `.grad`, both in memory that NumPy allocated."""
    params = [torch.from_numpy(array).requires_grad_() for array in workload.params()]
    for param, grad in zip(params, workload.grads(), strict=True):
        param.grad = torch.from_numpy(grad)
    return params


class OnTensors:
    """An optimizer with PyTorch's face over `params`; what it is, the subclass says."""

    def __init__(self, params: list[Any], optimizer: Any) -> None:
        self._params = params
        self._optimizer = optimizer

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
