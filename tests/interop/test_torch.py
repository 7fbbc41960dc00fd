"""PyTorch tensors are borrowed in place, and our state dict becomes one that torch.optim.Adam loads."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import (
    DtypeError,
    HyperparameterError,
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


def test_parameters_and_their_gradients_are_used_in_place():
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(3)).sum().backward()
    assert borrow(layer.weight, name="w", writable=True).shape == (2, 3)
    assert borrow(layer.weight.grad, name="grad").tolist() == [[1, 1, 1], [1, 1, 1]]


def refused():
    yield "half", lambda: torch.ones(3, dtype=torch.bfloat16), DtypeError, r"torch\.bfloat16.*x\.float\(\)"
    yield "integers", lambda: torch.ones(3, dtype=torch.int16), DtypeError, r"torch\.int16.*x\.float\(\)"
    yield "transposed", lambda: torch.ones(2, 3).T, LayoutError, r"x\.contiguous\(\)"
    yield "expanded", lambda: torch.ones(1).expand(4), LayoutError, "strides"
    yield "meta", lambda: torch.ones(3, device="meta"), UnsupportedArrayError, r"device meta.*x\.cpu\(\)"
    yield "sparse", lambda: torch.eye(3).to_sparse(), UnsupportedArrayError, r"x\.to_dense\(\)"


@pytest.mark.parametrize(
    ("make", "error", "message"), [row[1:] for row in refused()], ids=[row[0] for row in refused()]
)
def test_unsuitable_tensors_are_refused_by_name(make, error, message):
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
def test_torch_loads_our_state_and_continues(kind):
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


def test_hat_mode_is_refused_with_advice():
    with pytest.raises(StateDictError, match=r"eps_mode='hat'.*\['eps_mode'\] = 'algorithm1' and choose its eps"):
        to_torch_state_dict(ours(eps_mode="hat"))


def test_an_optimizer_without_state_converts_too():
    given = {"state": {}, "param_groups": ours()["param_groups"]}
    optimizer = torch.optim.Adam([torch.ones(2, 3), torch.ones(4)])
    optimizer.load_state_dict(to_torch_state_dict(given))
    assert optimizer.state_dict()["state"] == {}


def stepped(*shapes):
    """Return parameters that start at 1, and their optimizer after its first step."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = na.Adam(params, lr=0.125)
    optimizer.step([torch.ones(shape) for shape in shapes])
    return params, optimizer


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_parameter_with_replaced_data_still_trains(kind):
    """As in torch.optim, the optimizer follows `.data = `, `vector_to_parameters` and similar changes."""
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


def test_a_parameter_with_unsuitable_data_is_refused_until_it_is_restored():
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


def test_parameters_that_later_share_memory_are_refused():
    (one, other), optimizer = stepped(3, 3)
    one.data = other.data
    with pytest.raises(OverlapError):
        optimizer.step([torch.ones(3), torch.ones(3)])


# --- 16 bits ---

NARROW = ["bfloat16", "float16"]


def as_arrays(tensors):
    """Return copies of tensors as NumPy arrays, bfloat16 as its bits."""
    return [borrow(tensor, name="x", narrow=True).copy() for tensor in tensors]


def draw(seed, dtype, *sizes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(getattr(torch, dtype)) for size in sizes]


@pytest.mark.parametrize("options", [{}, {"master_weights": True}, {"state_dtype": "bfloat16"}, {"ema_decay": 0.5}])
@pytest.mark.parametrize("grad", [*NARROW, "float32"])
@pytest.mark.parametrize("param", NARROW)
def test_16_bit_tensors_train_like_arrays(param, grad, options):
    tensors = [torch.nn.Parameter(tensor) for tensor in draw(1, param, 1_300, 3)]
    arrays = as_arrays(tensors)
    optimizer, other = na.Adam(tensors, lr=0.01, **options), na.Adam(arrays, lr=0.01, **options)
    for seed in range(3):
        grads = draw(seed, grad, 1_300, 3)
        other.step(as_arrays(grads))
        optimizer.step(grads, zero_grad=True)
        assert not any(tensor.any() for tensor in grads)
    for tensor, array in zip(as_arrays(tensors), arrays, strict=True):
        assert tensor.tobytes() == array.tobytes()


@pytest.mark.parametrize("state", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", *NARROW])
def test_torch_continues_from_a_state_of_any_format(dtype, state):
    """PyTorch loads the same state as our float32 optimizer, rounded to the parameter's dtype."""
    tensors = [torch.nn.Parameter(tensor) for tensor in draw(1, dtype, 1_300, 3)]
    options = {"eps_mode": "algorithm1", "amsgrad": True}
    optimizer = na.Adam(tensors, state_dtype=state, ema_decay=0.5, master_weights=dtype != "float32", **options)
    optimizer.step(draw(2, "float32", 1_300, 3))
    wide = na.Adam([np.zeros(1_300, np.float32), np.zeros(3, np.float32)], **options)
    wide.load_state_dict(optimizer.state_dict())
    theirs = torch.optim.Adam(tensors, amsgrad=True)
    converted = to_torch_state_dict(optimizer.state_dict())
    assert set(converted["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    kept = getattr(torch, "bfloat16" if state == "bfloat16" else "float32")
    assert {converted["state"][0][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {kept}
    theirs.load_state_dict(converted)
    for index, entry in theirs.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            expected = torch.from_numpy(wide.state[index][key].copy()).to(entry[key].dtype)
            assert torch.equal(entry[key], expected), key
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    theirs.step()
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", *NARROW])
@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_a_torch_state_of_any_format_loads(dtype, state):
    tensors = [torch.nn.Parameter(tensor) for tensor in draw(1, dtype, 300)]
    theirs = torch.optim.Adam(tensors)
    tensors[0].grad = draw(2, dtype, 300)[0]
    theirs.step()
    optimizer = na.Adam(tensors, state_dtype=state)
    optimizer.load_state_dict(theirs.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        expected = theirs.state_dict()["state"][0][key].to(getattr(torch, state))
        assert as_arrays([expected])[0].tobytes() == optimizer.state[0][key].tobytes()
    assert optimizer.state[0]["step"] == 1


@pytest.mark.parametrize("dtype", NARROW)
def test_a_16_bit_parameter_with_replaced_storage_still_trains(dtype):
    """Digits of the master copy beyond the parameter's precision survive a replaced storage with the same values."""
    moved, same = (torch.nn.Parameter(torch.ones(64).to(getattr(torch, dtype))) for _ in range(2))
    options = {"master_weights": True, "ema_decay": 0.5, "lr": 1e-4}
    optimizers = [na.Adam([param], **options) for param in (moved, same)]
    for step in range(60):
        if step in (10, 11, 30):
            moved.data = moved.data.clone()
        for optimizer in optimizers:
            optimizer.step([torch.ones(64)])
    assert torch.equal(moved, same)
    assert (moved < 1).all()
    for key in ("master_param", "exp_avg", "ema"):
        assert optimizers[0].state[0][key].tobytes() == optimizers[1].state[0][key].tobytes(), key


def test_the_master_copy_starts_from_new_values_in_replaced_storage():
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = na.Adam([param], lr=1e-4, master_weights=True)
    optimizer.step([torch.ones(4)])
    param.data = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.bfloat16)  # the first of them is the old one
    optimizer.step([torch.ones(4)])
    np.testing.assert_allclose(optimizer.state[0]["master_param"], [1 - 2e-4, 2 - 1e-4, -3 - 1e-4, 4 - 1e-4], rtol=1e-6)


def test_refused_moved_parameters_keep_their_state():
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = na.Adam([param], lr=1e-4, master_weights=True)
    optimizer.step([torch.ones(4)])
    before = optimizer.state[0]["master_param"].tobytes()
    kept = param.data
    for data, error in ((torch.ones(4).half(), DtypeError), (torch.ones(5).bfloat16(), ShapeError)):
        param.data = data
        with pytest.raises(error, match=r"params\[0\]"):
            optimizer.step([torch.ones(data.shape)])
    param.data = kept
    assert optimizer.state[0]["master_param"].tobytes() == before
    assert optimizer.step([torch.ones(4)]).applied


def test_a_nadam_dict_is_refused_because_of_unknown_options():
    param = torch.ones(3, requires_grad=True)
    theirs = torch.optim.NAdam([param])
    param.sum().backward()
    theirs.step()
    ours = na.Adam([np.ones(3, np.float32)])
    with pytest.raises(HyperparameterError, match=r"'momentum_decay' .* of other optimizers"):
        ours.load_state_dict(theirs.state_dict())
    with pytest.raises(HyperparameterError, match=r"'momentum_decay' .* of other optimizers"):
        na.Adam(theirs.param_groups)
    assert not ours.state
