"""What the contestants that update PyTorch's tensors have in common: the tensors, and what is asked of them."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.contestant import concrete, load
from benchmarks.workload import Array, Workload, bfloat16_bits


def parameters(torch: Any, workload: Workload, *, bfloat16: bool = False) -> list[Any]:
    """Return tensors with their gradients in `.grad`, both in memory that NumPy allocated."""
    params = [_tensor(torch, array, bfloat16).requires_grad_() for array in workload.params()]
    for param, grad in zip(params, workload.grads(), strict=True):
        param.grad = _tensor(torch, grad, bfloat16)
    return params


def _tensor(torch: Any, array: Array, bfloat16: bool) -> Any:
    return torch.from_numpy(bfloat16_bits(array)).view(torch.bfloat16) if bfloat16 else torch.from_numpy(array)


class OnTensors:
    """An optimizer with PyTorch's face over `params`; what it is, the subclass says."""

    moment_keys: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    """What stands for the moments in its state; of 8-bit state the scales of its blocks."""

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
        """Return the parameters: where they lie if they are float32, else in float32."""
        return concrete([param.detach().float() for param in self._params])

    def grads(self) -> list[Any]:
        """Return the gradients, where they lie."""
        return [param.grad for param in self._params]

    def moments(self) -> list[Array]:
        """Return the moments, all first ones, then all second ones."""
        states = self._optimizer.state.values()
        return concrete([state[key].float() for key in self.moment_keys for state in states])

    def bytes_held(self) -> int:
        """Return the bytes of parameters, gradients and state."""
        tensors = [*self._params, *(param.grad for param in self._params)]
        tensors += [entry for state in self._optimizer.state.values() for entry in state.values()]
        return sum(_bytes(tensor) for tensor in tensors)


def _bytes(entry: Any) -> int:
    """Return the bytes of a tensor, or of those that it is made of (torchao's 8-bit state); of a plain number none."""
    if hasattr(entry, "__tensor_flatten__"):
        return sum(_bytes(getattr(entry, name)) for name in entry.__tensor_flatten__()[0])
    return entry.numel() * entry.element_size() if hasattr(entry, "element_size") else 0
