"""Gradients directly from PyTorch and JAX, and pulls directly into a PyTorch model."""

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


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
def test_a_pytorch_worker_trains(client):
    layer = torch.nn.Linear(5, 3)
    model = client.create_model("m", dict(layer.named_parameters()), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    layer(torch.ones(5)).sum().backward()
    ack = model.push({name: parameter.grad for name, parameter in layer.named_parameters()})
    model.pull(out=dict(layer.named_parameters()))
    assert (ack.version, model.version) == (1, 1)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1)  # the first step is lr, against the sign
    assert model.push(dict.fromkeys(before)).version == 2


@pytest.mark.skipif(jax is None, reason="JAX is not installed; the parity environment has it")
def test_a_jax_worker_trains(client):
    model = client.create_model("m", {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}, lr=0.1)
    grads = jax.grad(lambda p: (jnp.ones(3) @ p["w"] + p["b"]).sum())({"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    assert model.push(grads).version == 1
    pulled = model.pull()
    np.testing.assert_allclose(pulled["w"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(pulled["b"], -0.1, rtol=1e-5)


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
def test_a_backward_pass_through_tensors_overwritten_by_a_pull_is_an_error(client):
    weights = {"w": torch.ones(3, requires_grad=True)}
    model = client.create_model("m", weights, lr=0.1)
    loss = (weights["w"] ** 2).sum()
    model.push({"w": torch.ones(3)})
    model.pull(out=weights)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
