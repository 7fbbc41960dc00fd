"""Unsupported uses of GPU arrays are refused by name, and nothing is changed."""

import numpy as np
import pytest
from lending import Interface

import numba_adam as na
from numba_adam.errors import DtypeError, HyperparameterError, OverlapError, ShapeError, UnsupportedArrayError


def pair():
    """Return an optimizer of an array on the CPU and one on a GPU, both arrays, and gradients for them."""
    params = np.ones(3, "f4"), np.ones((2, 2), "f4")
    optimizer = na.Adam({"cpu": params[0], "gpu": Interface(params[1])})
    return optimizer, params, {"cpu": np.ones(3, "f4"), "gpu": Interface(np.ones((2, 2), "f4"))}


def expect_unchanged(optimizer, params):
    assert all((param == 1).all() for param in params)
    assert optimizer.state == {}


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"gpu": np.ones((2, 2), "f4")}, UnsupportedArrayError, r"grads\['gpu'\] .*not in the memory of a CUDA GPU"),
        (
            {"cpu": Interface(np.ones(3, "f4"))},
            UnsupportedArrayError,
            r"grads\['cpu'\] .*expected an array in this host's",
        ),
        ({"gpu": Interface(np.ones(4, "f4"))}, ShapeError, r"grads\['gpu'\] has shape \(4,\)"),
        ({"cpu": np.ones(4, "f4")}, ShapeError, r"grads\['cpu'\] has shape \(4,\)"),
        ({"gpu": Interface(np.ones((2, 2), "f4"), device=1)}, UnsupportedArrayError, r"grads\['gpu'\] is on GPU 1"),
    ],
)
@pytest.mark.parametrize("call", [{}, {"loss_scale": 2.0}], ids=["plain", "measured"])
def test_an_unsuitable_gradient_changes_nothing(grads, error, message, call):
    optimizer, params, good = pair()
    with pytest.raises(error, match=message):
        optimizer.step({**good, **grads}, **call)
    expect_unchanged(optimizer, params)
    assert optimizer.step(good, **call).applied


@pytest.mark.parametrize("make", ["step", "accumulate"])
def test_float64_gradients_require_the_compute_dtype_float64(make):
    param = np.ones(3, "f4")
    optimizer = na.Adam({"w": Interface(param)})
    with pytest.raises(DtypeError, match=r"grads\['w'\] has dtype float64: .* float32 is computed in; convert it"):
        getattr(optimizer, make)({"w": Interface(np.ones(3))})
    expect_unchanged(optimizer, [param])


def test_arrays_that_share_memory_are_refused():
    """The host and its GPUs share one address space."""
    both = np.ones(8, "f4")
    with pytest.raises(OverlapError, match=r"params\[0\] and params\[1\] share memory"):
        na.Adam([both[:5], Interface(both[4:])])
    optimizer, params, grads = pair()
    with pytest.raises(OverlapError, match=r"grads\['cpu'\] and params\['gpu'\] share memory"):
        optimizer.step({"cpu": params[1].reshape(-1)[:3], "gpu": grads["gpu"]})
    with pytest.raises(OverlapError, match=r"grads\['cpu'\] and grads\['gpu'\] share memory"):
        optimizer.step({"cpu": both[:3], "gpu": Interface(both[2:6].reshape(2, 2))}, zero_grad=True)
    assert (both == 1).all()
    expect_unchanged(optimizer, params)


def test_a_read_only_gradient_cannot_be_set_to_zero():
    optimizer, params, grads = pair()
    grads["gpu"].array.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\['gpu'\] .*read-only"):
        optimizer.step(grads, zero_grad=True)
    expect_unchanged(optimizer, params)


def test_a_loss_scale_on_a_gpu_requires_all_parameters_there():
    optimizer, params, grads = pair()
    scale = Interface(np.array(2.0, "f4"))
    with pytest.raises(HyperparameterError, match="loss_scale is an array on a GPU: all parameters must be on that"):
        optimizer.step(grads, loss_scale=scale)
    with pytest.raises(HyperparameterError, match="loss_scale is an array on a GPU"):
        na.Adam(np.ones(3)).step(np.ones(3), loss_scale=scale)
    with pytest.raises(ShapeError, match=r"loss_scale has shape .* must be one float32"):
        na.Adam(Interface(np.ones(3))).step(Interface(np.ones(3)), loss_scale=Interface(np.ones(2, "f4")))
    expect_unchanged(optimizer, params)


def test_the_function_refuses_arrays_on_different_devices():
    arrays = [np.ones(3, "f4") for _ in range(4)]
    with pytest.raises(UnsupportedArrayError, match=r"exp_avg .*not in the memory of a CUDA GPU"):
        na.adam_update(Interface(arrays[0]), Interface(arrays[1]), arrays[2], Interface(arrays[3]), 1)
    with pytest.raises(UnsupportedArrayError, match=r"grad .*expected an array in this host's"):
        na.adam_update(arrays[0], Interface(arrays[1]), arrays[2], arrays[3], 1)
    assert all((array == 1).all() for array in arrays)
