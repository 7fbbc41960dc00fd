"""A PyTorch model and its optimizer, copied or saved together: the copied optimizer trains the copied model."""

from __future__ import annotations

import copy
import io

import pytest

import numba_adam as na

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]


def saved_and_loaded(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def trained(model, optimizer, steps):
    for k in range(steps):
        model.zero_grad()
        (model(torch.full((4, 3), float(k + 1))) ** 2).sum().backward()
        optimizer.step({name: param.grad for name, param in model.named_parameters()})
    return [param.detach().numpy().tobytes() for param in model.parameters()]


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5, "amsgrad": True}], ids=str)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_and_loaded])
def test_a_model_and_its_optimizer_are_copied_together(duplicate, options):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    optimizer = na.Adam(model.named_parameters(), lr=0.01, **options)
    before = trained(model, optimizer, 3)
    twin, other = duplicate((model, optimizer))
    for own, param in zip(other.param_groups[0]["params"], twin.parameters(), strict=True):
        assert own is param
    after = trained(twin, other, 3)
    assert [param.detach().numpy().tobytes() for param in model.parameters()] == before != after
    assert trained(model, optimizer, 3) == after
    assert other.state["0.weight"]["step"] == 6


def test_the_copy_follows_parameters_with_replaced_storage():
    model = torch.nn.Linear(3, 1)
    twin, other = copy.deepcopy((model, na.Adam(model.named_parameters(), lr=0.5)))
    twin.weight.data = twin.weight.data.clone()
    kept = twin.weight.detach().clone()
    trained(twin, other, 1)
    assert not torch.equal(twin.weight, kept)
