"""A gradient scaler whose check for infinities is part of our optimizers' steps. Imports torch and the optimizers."""

from __future__ import annotations

from typing import Any

import torch

from numba_adam.torch.offload import CPUOffloadAdam
from numba_adam.torch.optimizers import Adam
from numba_adam.torch.shards import is_sharded


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler`. With this library's `Adam` and `AdamW` it does not read the gradients itself.

        >>> import torch
        >>> from numba_adam.torch import Adam, GradScaler
        >>> model = torch.nn.Linear(2, 1)
        >>> opt, scaler = Adam(model.parameters()), GradScaler("cpu")
        >>> scaler.scale(model(torch.ones(2)).sum()).backward()
        >>> scaler.step(opt)
        >>> scaler.update()

    PyTorch's reads and writes every gradient before a step, to look for infinities. Here the step reads them, divides
    by the scale while it updates, and updates nothing if one is infinite or NaN. After `unscale_`, for other
    optimizers, and for sparse gradients, it does what PyTorch's does.
    """

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[Any, torch.Tensor]:
        """Let the step of one of our optimizers make the check, and note it in the returned tensor."""
        if not isinstance(optimizer, Adam) or isinstance(optimizer, CPUOffloadAdam) or _has_others(optimizer):
            return super()._check_inf_per_device(optimizer)  # type: ignore[no-any-return]
        found = torch.zeros((), dtype=torch.float32, device=self._scale.device)
        optimizer.report_overflow_in(found)
        by_device = {found.device: found}
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = by_device
        return by_device


def _has_others(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a gradient is sparse, or one of its shards is in another process."""
    grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
    return any(grad is not None and (grad.is_sparse or is_sharded(grad)) for grad in grads)
