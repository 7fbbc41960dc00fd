"""The gradient of network.py, computed by PyTorch. The only file of this folder that may import torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from numba_adam.demo.digits import Images
from numba_adam.demo.network import Params

torch.set_num_threads(1)  # more threads are slower for such a small network


def loss_and_gradients(params: Params, batch: Images) -> tuple[float, dict[str, Any]]:
    """Return the mean cross-entropy over the batch and its gradient for every parameter, as tensors."""
    leaves = {name: torch.from_numpy(value).requires_grad_() for name, value in params.items()}
    hidden = torch.relu(torch.from_numpy(batch.pixels) @ leaves["hidden.weight"] + leaves["hidden.bias"])
    scores = hidden @ leaves["scores.weight"] + leaves["scores.bias"]
    loss = functional.cross_entropy(scores, torch.from_numpy(batch.labels))
    loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in leaves.items()}
