"""Gradients set to zero during the update: all gradients, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from formats_reference import BFLOAT16, DTYPES, values_of

import numba_adam as na
from numba_adam.errors import HyperparameterError, OverlapError, ReadOnlyError

SIZES = (1_300, 1, 0, 129)
NARROW = ("bfloat16", "bfloat16 as uint16", "float16")
COPIES = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
HYPERPARAMETERS = {"weight_decay": 0.05, "decoupled_weight_decay": True, "lr": 0.02, "betas": (0.8, 0.95)}


def arrays_of(param, grad="float32", steps=4, sizes=SIZES):
    params = [values_of(size, DTYPES[param], size) for size in sizes]
    return params, [[values_of(size, DTYPES[grad], 31 * k + size) for size in sizes] for k in range(steps)]


def trained(params, grads, step=None, **options):
    optimizer = na.Adam([param.copy() for param in params], **options)
    for several in grads:
        optimizer.step([grad.copy() for grad in several], **(step or {}))
    return optimizer


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def contents(optimizer):
    """Return all bytes of an optimizer's visible state."""
    states = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in state.items()}
        for name, state in optimizer.state.items()
    }
    return [param.tobytes() for param in params_of(optimizer)], states


@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("param", ["float32", "float64", "bfloat16"])
def test_only_the_gradients_are_set_to_zero(param, grad):
    params, grads = arrays_of(param, grad)
    options = {"state_dtype": "bfloat16"} if (param, grad) == ("bfloat16", "bfloat16") else {}
    plain = trained(params, grads, **options)
    optimizer = na.Adam([p.copy() for p in params], **options)
    for several in grads:
        own = [grad.copy() for grad in several]
        optimizer.step([own[0], *own[1:]], zero_grad=True)
        assert [array.tobytes() for array in own] == [bytes(array.nbytes) for array in own]
    assert contents(optimizer) == contents(plain)


def test_gradients_of_every_kind_of_array_are_set_to_zero():
    import array

    whole = np.arange(8, dtype=np.float32)
    grads = [np.ones(3, np.float32), array.array("f", [1, 2, 3]), memoryview(np.ones(3, np.float32)), whole[2:5], None]
    optimizer = na.Adam([np.zeros(3, np.float32) for _ in grads])
    optimizer.step(grads, zero_grad=True)
    assert [list(grad) for grad in grads[:-1]] == [[0, 0, 0]] * 4
    assert whole.tolist() == [0, 1, 0, 0, 0, 5, 6, 7]
    assert [optimizer.state[k]["exp_avg"].all() for k in range(4)] == [True] * 4
    assert 4 not in optimizer.state


@pytest.mark.parametrize("form", ["plain", "bytes", "beside another buffer"])
def test_a_read_only_gradient_is_refused_before_anything_changes(form):
    grads = [np.ones(3, np.float32), np.ones(3, np.float32)]
    if form == "beside another buffer":
        grads[0] = memoryview(grads[0])
    grads[1] = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32) if form == "bytes" else grads[1]
    if form != "bytes":
        grads[1].setflags(write=False)
    optimizer = na.Adam([np.ones(3, np.float32) for _ in grads])
    optimizer.step(grads)
    before = contents(optimizer)
    with pytest.raises(ReadOnlyError, match=r"grads\[1\]"):
        optimizer.step(grads, zero_grad=True)
    assert contents(optimizer) == before
    assert [list(grad) for grad in grads] == [[1, 1, 1]] * 2
    optimizer.step(grads)
    assert optimizer.state[1]["step"] == 2


@pytest.mark.parametrize("options", [{"loss_scale": 2.0}, {"max_grad_norm": 1.0}], ids=str)
def test_a_skipped_step_keeps_the_gradients(options):
    grad = np.array([1, np.inf, 3], np.float32)
    optimizer = na.Adam([np.ones(3, np.float32)])
    assert not optimizer.step([grad], zero_grad=True, **options).applied
    assert grad.tolist() == [1, np.inf, 3]
    grad[1] = 2
    assert optimizer.step([grad], zero_grad=True, **options).applied
    assert grad.tolist() == [0, 0, 0]


SHARED = {
    "the same array twice": lambda g: [g, g],
    "two that overlap": lambda g: [g[:6], g[4:10]],
    "one in other bits": lambda g: [g[:6], g.view(np.float64)[:6]],
    "for both dtypes": lambda g: [g[:6], g[4:10]],
    "through another buffer": lambda g: [memoryview(g[:6]), g[5:11]],
}


@pytest.mark.parametrize("form", SHARED)
def test_gradients_that_share_memory_cannot_be_set_to_zero(form):
    """Zeroing the first gradient would erase the second. Without `zero_grad` they are accepted."""
    whole = np.ones(12, np.float32)
    grads = SHARED[form](whole)
    sizes = [len(grad) for grad in grads]
    dtypes = ["float32", "float64" if form == "for both dtypes" else "float32"]
    optimizer = na.Adam([np.ones(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)])
    optimizer.step(grads)
    before = contents(optimizer)
    with pytest.raises(OverlapError, match=r"grads\[0\].*grads\[1\]"):
        optimizer.step(grads, zero_grad=True)
    assert contents(optimizer) == before
    assert (whole == 1).all()
    optimizer.step([None, grads[1]], zero_grad=True)
    assert optimizer.state[1]["step"] == 2


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.ones(2), 1.0])
def test_zero_grad_must_be_a_bool(value):
    grad = np.ones(3)
    optimizer = na.Adam(np.ones(3))
    with pytest.raises(HyperparameterError, match="zero_grad"):
        optimizer.step(grad, zero_grad=value)
    assert optimizer.state == {}
    assert grad.all()
