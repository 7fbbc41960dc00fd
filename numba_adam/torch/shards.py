"""Parameters that PyTorch shards over processes (`DTensor`): each process updates its own shard. Imports torch.

A DTensor's shard is a plain tensor. The optimizer of this library updates it, and its state has the shard's shape. The
program sees this state as DTensors that are divided as their parameter is.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from numba_adam.errors import HyperparameterError, StateDictError, UnsupportedArrayError
from numba_adam.settings.options import Options


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is a DTensor. There is none before the program has imported its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class Shards:
    """The shards of an optimizer's parameters in this process. Parameters that are not sharded stand for themselves.

    Args:
        params: all parameters, in order.
    """

    def __init__(self, params: Sequence[Any]) -> None:
        self._params = params
        self._sharded = [place for place, param in enumerate(params) if is_sharded(param)]
        self.own: list[torch.Tensor] = [_local(param) for param in params]
        """What the steps update."""

    def __bool__(self) -> bool:
        """Return whether a parameter is sharded."""
        return bool(self._sharded)

    def are_current(self) -> bool:
        """Return whether all parameters still have these shards."""
        return all(self._params[place]._local_tensor is self.own[place] for place in self._sharded)

    def check(self, options: Options, clipping: Mapping[str, float | None]) -> None:
        """Refuse what would be wrong for shards.

        Raises:
            UnsupportedArrayError: a parameter is a sum that its processes have not computed yet.
            HyperparameterError: an option needs whole parameters or gradients.
        """
        for place in self._sharded:
            param = self._params[place]
            name = f"params[{place}] (DTensor)"
            if any(each.is_partial() for each in param.placements):
                raise UnsupportedArrayError(
                    f"{name} has placements {param.placements}, expected Shard and Replicate: its value is a sum over "
                    "processes; call redistribute() first"
                )
            if clipping["max_grad_norm"] is not None:
                raise HyperparameterError(
                    f"max_grad_norm={clipping['max_grad_norm']!r} is refused because {name} is sharded, and a process "
                    "sees the norm of its own shards only: call torch.nn.utils.clip_grad_norm_ before step()"
                )
            if options.state_dtype == "8bit":
                raise HyperparameterError(
                    f"state_dtype='8bit' is refused because {name} is sharded: its blocks would end elsewhere when "
                    "a checkpoint is divided in another way; use state_dtype='bfloat16'"
                )

    def grads(self, grads: Sequence[Any]) -> list[torch.Tensor | None]:
        """Return this process's shards of the gradients. A gradient that is divided in another way is redistributed.

        Raises:
            UnsupportedArrayError: a sharded parameter has a plain gradient, or the other way round.
        """
        return [
            grad if grad is None else self._divided(grad, place, f"the gradient of params[{place}]")
            for place, grad in enumerate(grads)
        ]

    def _divided(self, tensor: Any, place: int, name: str) -> torch.Tensor:
        """Return this process's shard of a tensor that belongs to a parameter."""
        param = self._params[place]
        if is_sharded(tensor) != is_sharded(param) or (is_sharded(param) and tensor.device_mesh != param.device_mesh):
            raise UnsupportedArrayError(
                f"{name} is {_kind(tensor)}, expected {_kind(param)}, as its parameter is; convert it with "
                "distribute_tensor() or full_tensor()"
            )
        if is_sharded(param) and tensor.placements != param.placements:
            with torch.no_grad():
                tensor = tensor.redistribute(param.device_mesh, param.placements)
        return _local(tensor)

    def entry(self, place: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return a parameter's state with this process's shards.

        Raises:
            StateDictError: a tensor of it is not divided as the parameter is.
        """
        try:
            return {
                key: self._divided(value, place, f"state[{place}][{key!r}]")
                if isinstance(value, torch.Tensor) and key != "step"
                else value
                for key, value in entry.items()
            }
        except UnsupportedArrayError as error:
            raise StateDictError(str(error)) from None

    def shown(self, place: int, value: Any) -> Any:
        """Return what the program sees of an array of a parameter's shape: a DTensor over it if that is sharded."""
        param = self._params[place]
        if not is_sharded(param) or not isinstance(value, torch.Tensor):
            return value
        spec = copy.copy(param._spec)
        spec.tensor_meta = spec.tensor_meta._replace(dtype=value.dtype)
        make: Callable[..., torch.Tensor] = sys.modules["torch.distributed.tensor"].DTensor
        return make(value, spec, requires_grad=False)

    def count_writes(self, grads: Sequence[object]) -> None:
        """Increment the version counters of the sharded parameters that have gradients, which autograd compares."""
        for place in self._sharded:
            if grads[place] is not None:
                torch.autograd.graph.increment_version(self._params[place])


def _local(tensor: Any) -> Any:
    """Return a tensor's shard in this process, as soon as it is complete; a plain tensor itself."""
    if not is_sharded(tensor):
        return tensor
    local = tensor._local_tensor
    return local if type(local) is torch.Tensor else local.wait() if hasattr(local, "wait") else local


def _kind(tensor: Any) -> str:
    return f"a DTensor on {tensor.device_mesh}" if is_sharded(tensor) else "a plain tensor"
