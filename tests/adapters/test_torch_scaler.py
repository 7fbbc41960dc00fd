"""Gradient scaling: `torch.amp.GradScaler` and ours, beside torch.optim's fused Adam."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import numba_adam.torch as na_torch

pytestmark = pytest.mark.parity
NEAR = 1e-5
SCALERS = pytest.mark.parametrize("scaler", [torch.amp.GradScaler, na_torch.GradScaler], ids=["PyTorch's", "ours"])


def groups(model):
    return [
        {"params": model[0].parameters(), "lr": 0.01},
        {"params": model[2].parameters(), "weight_decay": 0.1},
        {"params": model[3].parameters(), "betas": (0.8, 0.9)},
    ]


def train(model, optimizer, scaler, damage=None, unscaled=False, steps=6):
    """Train with a loss scale. `damage` is what an element of one parameter's gradient gets in the third step."""
    random = torch.Generator().manual_seed(5)
    for number in range(steps):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6, generator=random)).square().mean()).backward()
        if damage is not None and number == 2:
            place, value = damage
            list(model.parameters())[place].grad.view(-1)[-1] = value
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return scaler.get_scale()


@SCALERS
@pytest.mark.parametrize("make", [na_torch.Adam, na_torch.CPUOffloadAdam])
@pytest.mark.parametrize("damage", [None, (0, "inf"), (3, "-inf"), (5, "nan")], ids=str)
@pytest.mark.parametrize("unscaled", [False, True], ids=["step", "unscale_ first"])
def test_a_scaler_skips_the_steps_that_it_skips_for_fused_adam(net, scaler, make, damage, unscaled):
    damage = damage and (damage[0], float(damage[1]))
    models = net(), net()
    optimizers = make(groups(models[0])), torch.optim.Adam(groups(models[1]), fused=True)
    scales = [
        train(model, optimizer, kind("cpu", init_scale=1024.0, growth_interval=2), damage, unscaled)
        for model, optimizer, kind in zip(models, optimizers, (scaler, torch.amp.GradScaler), strict=True)
    ]
    assert scales[0] == scales[1] == (8192.0 if damage is None else 2048.0)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=NEAR)
        assert optimizers[0].state[one]["step"] == optimizers[1].state[other]["step"] == (6 if damage is None else 5)


@SCALERS
def test_gradients_in_float16_are_unscaled(net, scaler):
    model = net(dtype=torch.float16)
    optimizer = na_torch.AdamW(model.parameters(), lr=0.01, master_weights=True)
    scaler = scaler("cpu", init_scale=256.0)
    for param in model.parameters():
        param.grad = torch.full_like(param, 64.0)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.allclose(optimizer.state[model[0].weight]["exp_avg"], torch.tensor(0.1 * 64 / 256))


def test_our_scaler_leaves_reading_the_gradients_to_the_step(net):
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    checks = {}
    for kind in (torch.amp.GradScaler, na_torch.GradScaler):
        model, called = net(), []
        optimizer, scaler = na_torch.Adam(model.parameters()), kind("cpu")
        scaler.scale(model(torch.ones(1, 6)).sum()).backward()
        with Calls():
            scaler.step(optimizer)
        checks[kind] = [name for name in called if "non_finite_check" in name]
    assert len(checks[torch.amp.GradScaler]) == 1
    assert checks[na_torch.GradScaler] == []


def test_our_scaler_does_as_pytorchs_with_other_optimizers_sparse_gradients_and_when_it_is_off(net):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    assert train(model, optimizer, na_torch.GradScaler("cpu", init_scale=64.0), (0, float("inf"))) == 32.0
    assert optimizer.state[model[0].weight]["step"] == 5
    off = na_torch.GradScaler("cpu", enabled=False)
    assert train(model, na_torch.Adam(model.parameters()), off) == 1.0
    table = torch.nn.Embedding(5, 2, sparse=True)
    ours, scaler = na_torch.Adam(table.parameters()), na_torch.GradScaler("cpu", init_scale=64.0)
    before = copy.deepcopy(table.state_dict())
    scaler.scale(table(torch.tensor([1, 3])).sum() * float("inf")).backward()
    scaler.step(ours)
    scaler.update()
    assert torch.equal(table.weight, before["weight"])
    assert scaler.get_scale() == 32.0


def test_an_error_in_the_step_leaves_no_check_behind(net):
    model = net()
    optimizer, scaler = na_torch.Adam(model.parameters()), na_torch.GradScaler("cpu", init_scale=64.0)
    optimizer.param_groups[0]["lr"] = -1.0
    scaler.scale(model(torch.ones(1, 6)).sum()).backward()
    with pytest.raises(ValueError, match="lr"):
        scaler.step(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    model[0].weight.grad[0, 0] = float("nan")
    optimizer.step()  # without a scaler, a step does not look
    assert model[0].weight.isnan().any()
