"""PyTorch tensors are borrowed in place, and our state dict becomes one that torch.optim.Adam loads."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import (
    DtypeError,
    LayoutError,
    OverlapError,
    ShapeError,
    StateDictError,
    UnsupportedArrayError,
)
from numba_adam.interop import borrow, to_torch_state_dict

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tensor_is_written_in_place(dtype, requires_grad):
    tensor = torch.ones(2, 3, dtype=getattr(torch, dtype), requires_grad=requires_grad)
    view = borrow(tensor, name="w", writable=True)
    assert (view.dtype, view.shape) == (np.dtype(dtype), (2, 3))
    view[1, 2] = 5
    assert tensor[1, 2].item() == 5
    assert view.ctypes.data == tensor.data_ptr()


def test_parameters_and_their_gradients():
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(3)).sum().backward()
    assert borrow(layer.weight, name="w", writable=True).shape == (2, 3)
    assert borrow(layer.weight.grad, name="grad").tolist() == [[1, 1, 1], [1, 1, 1]]


def refused():
    yield "half", lambda: torch.ones(3, dtype=torch.bfloat16), DtypeError, r"torch\.bfloat16.*x\.float\(\)"
    yield "transposed", lambda: torch.ones(2, 3).T, LayoutError, r"x\.contiguous\(\)"
    yield "expanded", lambda: torch.ones(1).expand(4), LayoutError, "strides"
    yield "meta", lambda: torch.ones(3, device="meta"), UnsupportedArrayError, r"device meta.*x\.cpu\(\)"
    yield "sparse", lambda: torch.eye(3).to_sparse(), UnsupportedArrayError, r"x\.to_dense\(\)"


@pytest.mark.parametrize(
    ("make", "error", "message"), [row[1:] for row in refused()], ids=[row[0] for row in refused()]
)
def test_tensors_that_cannot_be_used_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message) as caught:
        borrow(make(), name="grads['w']")
    assert "grads['w']" in str(caught.value)


def ours(**group: object) -> dict:
    rng = np.random.default_rng(5)
    state = {
        index: {
            "step": 7,
            "exp_avg": rng.normal(size=shape).astype(np.float32),
            "exp_avg_sq": rng.random(shape).astype(np.float32),
            "max_exp_avg_sq": rng.random(shape).astype(np.float32),
        }
        for index, shape in enumerate([(2, 3), (4,)])
    }
    settings = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True, "maximize": False}
    return {"state": state, "param_groups": [{**settings, "eps_mode": "algorithm1", "params": [0, 1], **group}]}


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_torch_loads_our_state_and_goes_on_from_it(kind):
    given = ours(decoupled_weight_decay=kind == "AdamW")
    parameters = [torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    optimizer = getattr(torch.optim, kind)(parameters)
    optimizer.load_state_dict(to_torch_state_dict(given))
    saved = optimizer.state_dict()
    for index, entry in given["state"].items():
        assert saved["state"][index]["step"].item() == 7
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            np.testing.assert_array_equal(saved["state"][index][key].numpy(), entry[key])
    assert {key: saved["param_groups"][0][key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")} == {
        "lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True,
    }  # fmt: skip
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"].item() == 8


def test_the_tensors_share_no_memory_with_our_arrays():
    given = ours()
    converted = to_torch_state_dict(given)
    converted["state"][0]["exp_avg"].fill_(99)
    assert not (given["state"][0]["exp_avg"] == 99).any()


def test_hat_mode_is_refused_with_the_reason_and_the_way_out():
    with pytest.raises(StateDictError, match=r"eps_mode='hat'.*\['eps_mode'\] = 'algorithm1' and choose its eps"):
        to_torch_state_dict(ours(eps_mode="hat"))


def test_an_optimizer_without_state_converts_too():
    given = {"state": {}, "param_groups": ours()["param_groups"]}
    optimizer = torch.optim.Adam([torch.ones(2, 3), torch.ones(4)])
    optimizer.load_state_dict(to_torch_state_dict(given))
    assert optimizer.state_dict()["state"] == {}


def stepped(*shapes):
    """Return parameters that start at 1, and an optimizer of theirs that has made its first step."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = na.Adam(params, lr=0.125)
    optimizer.step([torch.ones(shape) for shape in shapes])
    return params, optimizer


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_parameter_whose_data_was_replaced_still_learns(kind):
    """As with torch.optim: `.data = `, `vector_to_parameters` and their like do not leave the optimizer behind."""
    (moved, other), optimizer = stepped(3, (2, 2))
    (same, _), reference = stepped(3, (2, 2))
    moved.data = moved.data.clone()
    grads = [torch.full((3,), 0.5), torch.ones(2, 2)]
    for each in (optimizer, reference):
        for _ in range(2):
            each.step(grads if kind == "tensor" else [grad.numpy() for grad in grads])
    assert torch.equal(moved, same)
    assert (other < 0.7).all()
    assert [entry["step"] for entry in optimizer.state.values()] == [3, 3]


def test_a_parameter_replaced_by_what_does_not_fit_is_refused_until_it_fits_again():
    (param, other), optimizer = stepped(3, 2)
    kept, before = param.data, other.detach().clone()
    for data, error in ((torch.ones(4), ShapeError), (torch.ones(3).double(), DtypeError)):
        param.data = data
        for _ in range(2):
            with pytest.raises(error, match=r"params\[0\]"):
                optimizer.step([torch.ones(data.shape, dtype=data.dtype), torch.ones(2)])
    assert torch.equal(other, before)
    assert optimizer.state[1]["step"] == 1
    param.data = kept
    optimizer.step([torch.ones(3), torch.ones(2)])
    assert optimizer.state[0]["step"] == 2


def test_parameters_that_come_to_share_memory_are_refused():
    (one, other), optimizer = stepped(3, 3)
    one.data = other.data
    with pytest.raises(OverlapError):
        optimizer.step([torch.ones(3), torch.ones(3)])
