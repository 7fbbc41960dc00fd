"""The common base of contestants that update PyTorch's tensors."""

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
    """An optimizer with PyTorch's interface over `params`. A subclass chooses the optimizer."""

    moment_keys: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    """Keys of the moments in its state; for 8-bit state, those of the blocks' scales."""

    def __init__(self, params: list[Any], optimizer: Any) -> None:
        self._params = params
        self._optimizer = optimizer

    def step(self) -> object:
        """Make one step."""
        return self._optimizer.step()

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return str(load("torch").get_num_threads())

    def params(self) -> list[Array]:
        """Return the parameters: views if they are float32, otherwise float32 copies."""
        return concrete([param.detach().float() for param in self._params])

    def grads(self) -> list[Any]:
        """Return the gradients themselves, not copies."""
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
    """Return the bytes of a tensor, or of its inner tensors (torchao's 8-bit state); 0 for a plain number."""
    if hasattr(entry, "__tensor_flatten__"):
        return sum(_bytes(getattr(entry, name)) for name in entry.__tensor_flatten__()[0])
    return entry.numel() * entry.element_size() if hasattr(entry, "element_size") else 0
