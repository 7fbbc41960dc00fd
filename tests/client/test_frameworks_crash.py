"""Workers in PyTorch and JAX go on after a kill of the server, as NumPy's do in test_worker.py."""

from __future__ import annotations

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

pytestmark = pytest.mark.parity
BATCHES = [0.5, -1.0, 2.0, 0.0, 1.0, -2.0]
LEVELS = pytest.mark.parametrize(
    ("level", "versions"), [("process", [0, 1, 2, 3, 4, 5]), ("memory", [0, 1, 2, 3, 4, 2])]
)


def train_through_a_kill(server_process, model, worker, client, give) -> list[int]:
    """Run a loop, save version 2, kill the server in the fifth pass; return the versions that the passes began with."""
    versions = []
    for batch, step in worker:
        versions.append(step.version)
        if batch == 2.0:
            client.snapshot()
        if batch == 1.0:
            server_process.kill()
            server_process.start()
        give(batch, step)
    return versions


@LEVELS
@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
def test_a_pytorch_worker_goes_on_after_a_crash(server_process, connect, level, versions):
    client, net = connect(server_process.address), torch.nn.Linear(2, 1)
    model = client.create_model("m", net.named_parameters(), lr=0.1, durability=level)

    def give(batch, step):
        (net(torch.full((1, 2), batch)) - 1).square().sum().backward()

    worker = model.worker(BATCHES, net.named_parameters())
    assert train_through_a_kill(server_process, model, worker, client, give) == versions
    pulled = model.pull()
    assert client.status().models[0].model.version == versions[-1] + 1
    assert all(isinstance(each, torch.Tensor) and each.isfinite().all() for each in pulled.values())


@LEVELS
@pytest.mark.skipif(jax is None, reason="JAX is not installed; the parity environment has it")
def test_a_jax_worker_goes_on_after_a_crash(server_process, connect, level, versions):
    client = connect(server_process.address)
    model = client.create_model("m", {"w": jnp.array([1.0, -2.0, 3.0])}, lr=0.1, durability=level)
    gradient, seen = jax.grad(lambda params, batch: ((params["w"] - batch) ** 2).sum()), []

    def give(batch, step):
        seen.append(np.asarray(step.params["w"]))
        step.grads = gradient(step.params, batch)

    assert train_through_a_kill(server_process, model, model.worker(BATCHES), client, give) == versions
    assert [place for place in range(5) if np.array_equal(seen[5], seen[place])] == ([2] if level == "memory" else [])
    assert client.status().models[0].model.version == versions[-1] + 1
