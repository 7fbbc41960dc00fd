"""What the tests of the adapters share: small networks, and two optimizers that train side by side."""

from __future__ import annotations

import importlib.util

import pytest

# `make parity` has PyTorch; without it there is nothing here to run.
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
if not collect_ignore_glob:
    import torch


def network(seed=0, dtype=None):
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 3)
    )
    return layers if dtype is None else layers.to(dtype)


class Pair:
    """The same network twice: one trained by our optimizer, one by PyTorch's."""

    def __init__(self, ours, theirs, make=network):
        self.models = make(), make()
        self.optimizers = ours(self.models[0]), theirs(self.models[1])
        self.random = torch.Generator().manual_seed(7)

    def train(self, steps, scale=1.0):
        for _ in range(steps):
            batch = torch.randn(12, 6, generator=self.random)
            for model, optimizer in zip(self.models, self.optimizers, strict=True):
                optimizer.zero_grad()
                (model(batch).square().mean() * scale).backward()
                optimizer.step()

    def difference(self):
        ours, theirs = (
            torch.cat([param.detach().reshape(-1) for param in model.parameters()]) for model in self.models
        )
        return (ours - theirs).abs().max().item()


@pytest.fixture
def pair():
    return Pair


@pytest.fixture
def net():
    return network
