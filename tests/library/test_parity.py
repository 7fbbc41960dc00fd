"""Comparison with torch.optim.Adam and AdamW in every combination of options, and state dicts in both directions."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

import numba_adam as na
from numba_adam.interop import to_torch_state_dict

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]

STEPS = 300
SHAPES = [(7, 5), (11,), ()]
# Both sides round each operation once, in another order: an ulp here and there, and lr bounds what a step can add.
# After 300 steps of lr 0.01 that has grown to less than this, relative to the largest parameter of about 3.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
OPTIONS = {
    "weight_decay": (0.0, 0.1),
    "amsgrad": (False, True),
    "maximize": (False, True),
    "betas": ((0.9, 0.999), (0.5, 0.9)),
    "eps": (1e-8, 1e-2),
}
COMBINATIONS = [dict(zip(OPTIONS, chosen, strict=True)) for chosen in itertools.product(*OPTIONS.values())]


def start(dtype):
    rng = np.random.default_rng(12)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in SHAPES]


def pair(kind, dtype, **options):
    """Return PyTorch's optimizer and its parameters, and ours."""
    theirs = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in start(dtype)]
    ours = start(dtype)
    extra = {} if kind == "AdamW" else {"decoupled_weight_decay": False}
    optimizers = (
        getattr(torch.optim, kind)(theirs, lr=0.01, **options),
        getattr(na, kind)(ours, lr=0.01, eps_mode="algorithm1", **options, **extra),
    )
    return *optimizers, theirs, ours


def gradients(rng, dtype, step):
    """Return one gradient for each parameter, with very different magnitudes, and sometimes None."""
    grads = [np.asarray(rng.normal(size=shape) * np.exp(rng.uniform(-8, 4, shape)), dtype) for shape in SHAPES]
    return [None if (step + index) % 5 == 0 and index == 1 else grad for index, grad in enumerate(grads)]


def train(optimizers, theirs, dtype, steps, seed=0):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        grads = gradients(rng, dtype, step)
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = None if grad is None else torch.from_numpy(grad.copy())
        optimizers[0].step()
        optimizers[1].step(grads)


def check_equal(theirs, ours, dtype, factor=1):
    for one, other in zip(theirs, ours, strict=True):
        tolerance = TOLERANCE[dtype] * factor
        np.testing.assert_allclose(other, one.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_hundreds_of_steps_match_pytorch(kind, dtype, options):
    first, second, theirs, ours = pair(kind, dtype, **options)
    train((first, second), theirs, dtype, STEPS)
    check_equal(theirs, ours, dtype)
    for param, state in zip(theirs, second.state.values(), strict=True):
        own = first.state[param]
        assert int(own["step"]) == state["step"]
        for key in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else [])):
            expected = own["max_exp_avg_sq" if key == "max_exp_avg_sq" else key].numpy()
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(state[key], expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_propagate_as_in_pytorch(bad):
    first, second, theirs, ours = pair("Adam", "float32")
    grads = [np.ones(shape, np.float32) for shape in SHAPES]
    grads[1][3] = bad
    for param, grad in zip(theirs, grads, strict=True):
        param.grad = torch.from_numpy(grad.copy())
    first.step()
    second.step(grads)
    check_equal(theirs, ours, "float32")
    for key in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(second.state[1][key], first.state[theirs[1]][key].numpy(), rtol=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_real_pytorch_dict_continues_here(kind, dtype, amsgrad):
    first, _, theirs, _ = pair(kind, dtype, amsgrad=amsgrad, weight_decay=0.1, betas=(0.8, 0.95))
    other = getattr(na, kind)(start(dtype))
    train((first, other), theirs, dtype, 20)
    ours = [param.detach().numpy().copy() for param in theirs]
    second = na.Adam(ours)  # everything is in the dict, the kind of decay included
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["eps_mode"] == "algorithm1"
    assert second.param_groups[0]["decoupled_weight_decay"] is (kind == "AdamW")
    train((first, second), theirs, dtype, 50, seed=1)
    check_equal(theirs, ours, dtype)


@pytest.mark.parametrize("saved_by", ["Adam", "AdamW"])
@pytest.mark.parametrize("loaded_by", ["Adam", "AdamW"])
@pytest.mark.parametrize("form", ["tensors", "of an older PyTorch"])
def test_a_dict_of_adam_or_adamw_continues_as_in_pytorch(saved_by, loaded_by, form):
    """AdamW's decay stays decoupled after loading Adam's dict; it became L2 once."""
    source, _, theirs, _ = pair(saved_by, "float32", weight_decay=0.1)
    train((source, na.AdamW(start("float32"))), theirs, "float32", 5)
    saved = copy.deepcopy(source.state_dict())
    if form != "tensors":
        for name in ("decoupled_weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused"):
            del saved["param_groups"][0][name]
        for state in saved["state"].values():
            state["step"] = int(state["step"])
    ours = [param.detach().numpy().copy() for param in theirs]
    first, second = getattr(torch.optim, loaded_by)(theirs), getattr(na, loaded_by)(ours)
    first.load_state_dict(copy.deepcopy(saved))
    second.load_state_dict(saved)
    kinds = [each.param_groups[0]["decoupled_weight_decay"] for each in (first, second)]
    assert kinds[0] is kinds[1]
    train((first, second), theirs, "float32", 20, seed=1)
    check_equal(theirs, ours, "float32")


@pytest.mark.parametrize("named", [False, True])
def test_param_groups_of_a_pytorch_optimizer_make_an_equal_optimizer(named):
    layer = torch.nn.Linear(3, 2)
    theirs = torch.optim.AdamW(layer.named_parameters() if named else layer.parameters(), lr=0.25, weight_decay=0.5)
    ours = na.AdamW(theirs.param_groups)
    group = ours.param_groups[0]
    assert (group["lr"], group["weight_decay"], group.get("param_names")) == (
        0.25,
        0.5,
        ["weight", "bias"] if named else None,
    )
    assert group["params"][0] is layer.weight
    with pytest.raises(na.errors.HyperparameterError, match="'fused'"):
        na.AdamW([{**theirs.param_groups[0], "fused": True}])


def test_named_parameters_and_notes_are_accepted_as_in_pytorch():
    layer, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    groups = [
        [{"params": [(name, param)], "name": name, "initial_lr": 0.5} for name, param in each.named_parameters()]
        for each in (layer, twin)
    ]
    theirs = torch.optim.Adam(groups[1], lr=0.1)
    ours = na.Adam(groups[0], lr=0.1, eps_mode="algorithm1")
    whole = na.Adam(layer.named_parameters())
    assert whole.param_groups[0]["param_names"] == ["weight", "bias"]
    for module in (layer, twin):
        module(torch.ones(4, 3)).sum().backward()
    theirs.step()
    ours.step((name, param.grad) for name, param in layer.named_parameters())
    for one, other in zip(layer.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=1e-5)
    for saved in (theirs.state_dict(), to_torch_state_dict(ours.state_dict())):
        for group, name in zip(saved["param_groups"], ("weight", "bias"), strict=True):
            assert (group["name"], group["initial_lr"], list(group["param_names"])) == (name, 0.5, [name])
        theirs.load_state_dict(saved)
        ours.load_state_dict(saved)
    assert ours.param_groups[1]["name"] == "bias"


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_our_dict_continues_in_pytorch(kind, dtype, amsgrad):
    _, second, theirs, ours = pair(kind, dtype, amsgrad=amsgrad, weight_decay=0.1, betas=(0.8, 0.95))
    other = getattr(torch.optim, kind)(theirs)
    train((other, second), theirs, dtype, 20)
    with torch.no_grad():
        for param, array in zip(theirs, ours, strict=True):
            param.copy_(torch.from_numpy(array.copy()))
    first = getattr(torch.optim, kind)(theirs)
    first.load_state_dict(to_torch_state_dict(second.state_dict()))
    train((first, second), theirs, dtype, 50, seed=1)
    check_equal(theirs, ours, dtype)


def test_a_round_trip_through_pytorch_changes_no_bit():
    first, second, theirs, _ = pair("AdamW", "float32", amsgrad=True)
    train((first, second), theirs, "float32", 5)
    before = copy.deepcopy(second.state_dict())
    torchs = torch.optim.AdamW(theirs)
    torchs.load_state_dict(to_torch_state_dict(before))
    second.load_state_dict(torchs.state_dict())
    after = second.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert after["state"][index]["step"] == state["step"]
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert after["state"][index][key].tobytes() == state[key].tobytes()


def test_pytorch_parameters_and_gradients_are_used_in_place():
    layer = torch.nn.Linear(5, 3)
    twin = copy.deepcopy(layer)
    ours = na.Adam(dict(layer.named_parameters()), lr=0.01, eps_mode="algorithm1")
    theirs = torch.optim.Adam(twin.parameters(), lr=0.01)
    inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
    for _ in range(20):
        for module in (layer, twin):
            module.zero_grad()
            (module(inputs) ** 2).sum().backward()
        ours.step({name: param.grad for name, param in layer.named_parameters()})
        theirs.step()
    for one, other in zip(layer.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_learning_rate_may_be_a_tensor():
    param = torch.nn.Parameter(torch.ones(3))
    theirs = torch.optim.Adam([param], lr=torch.tensor(0.25))
    param.grad = torch.ones(3)
    theirs.step()
    ours = na.Adam([np.ones(3, np.float32)])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.25
