"""Low-precision copies and master copies after loading a state: their values at once and after the next step."""

from __future__ import annotations

import copy

import formats_reference as oracle
import numpy as np
import pytest
from formats_reference import DTYPES, Twin, bits, values_of

import numba_adam as na

SIZE = 300


def trained(param, count, **options):
    optimizer = na.Adam([param], lr=0.05, **options)
    for k in range(count):
        optimizer.step([values_of(SIZE, DTYPES["float32"], k)])
    return optimizer


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_loading_a_state_makes_copies_of_the_current_parameters(name, kind):
    """Restoring a checkpoint writes the parameters first, then loads the state: copies must have the new values."""
    source = values_of(SIZE, DTYPES[name], 1)
    saved = copy.deepcopy(trained(source, 3).state_dict())
    param = values_of(SIZE, DTYPES[name], 2)
    optimizer = trained(param, 2, low_precision_copy=kind)
    held = optimizer.low_precision[0]
    param[...] = source
    assert bits(held) != bits(oracle.encode(source, held.dtype))
    optimizer.load_state_dict(saved)
    assert optimizer.low_precision[0] is held
    assert bits(held) == bits(oracle.encode(source, held.dtype))
    optimizer.step([values_of(SIZE, DTYPES["float32"], 9)])
    twin = na.Adam([source], lr=0.05)
    twin.load_state_dict(saved)
    twin.step([values_of(SIZE, DTYPES["float32"], 9)])
    assert param.tobytes() == source.tobytes()
    assert bits(held) == bits(oracle.encode(param, held.dtype))


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 as uint16", "float16"])
def test_a_loaded_master_copy_is_what_the_next_step_works_on(name):
    """Includes digits below the parameter's precision: the parameter has only the rounded value."""
    source = values_of(SIZE, DTYPES[name], 1)
    twin = Twin(source, master_weights=True, hyperparameters={"lr": 0.05})
    first = trained(source, 3, master_weights=True)
    for k in range(3):
        twin.step(values_of(SIZE, DTYPES["float32"], k))
    saved, rounded = copy.deepcopy(first.state_dict()), source.copy()
    master = saved["state"][0]["master_param"]
    assert master.tobytes() == twin.master.tobytes()
    assert oracle.widen(rounded).tobytes() != master.tobytes()
    second = na.Adam([rounded], lr=0.05, master_weights=True)
    second.load_state_dict(saved)
    assert rounded.tobytes() == source.tobytes()
    assert second.state[0]["master_param"].tobytes() == master.tobytes()
    grad = values_of(SIZE, DTYPES["float32"], 9)
    second.step([grad])
    twin.step(grad)
    assert second.state[0]["master_param"].tobytes() == twin.master.tobytes()
    assert bits(rounded) == bits(twin.param)


@pytest.mark.parametrize("has_state", [False, True])
def test_without_a_master_copy_in_the_dict_the_current_parameter_is_used(has_state):
    source = values_of(SIZE, DTYPES["bfloat16"], 1)
    saved = copy.deepcopy(trained(source, 2 if has_state else 0).state_dict())
    param = values_of(SIZE, DTYPES["bfloat16"], 2)
    optimizer = trained(param, 2, master_weights=True, ema_decay=0.5)
    param[...] = source
    optimizer.load_state_dict(saved)
    assert bits(optimizer.ema[0]) == bits(oracle.widen(source))
    optimizer.step([np.zeros(SIZE, np.float32)])
    twin = na.Adam([source], lr=0.05, master_weights=True, ema_decay=0.5)
    twin.load_state_dict(saved)
    twin.step([np.zeros(SIZE, np.float32)])
    for key, value in twin.state[0].items():
        assert optimizer.state[0][key].tobytes() == value.tobytes(), key


def test_a_parameter_with_a_state_and_one_without_load_together():
    params = [values_of(SIZE, DTYPES["bfloat16"], k) for k in range(2)]
    optimizer = na.Adam(params, lr=0.05, master_weights=True, ema_decay=0.5)
    optimizer.step([values_of(SIZE, DTYPES["float32"], 1), None])
    saved = copy.deepcopy(optimizer.state_dict())
    now = [param.copy() for param in params]
    optimizer.step([values_of(SIZE, DTYPES["float32"], 2)] * 2)
    for param, value in zip(params, now, strict=True):
        param[...] = value
    optimizer.load_state_dict(saved)
    assert list(optimizer.state) == [0]
    assert bits(optimizer.ema[0]) == bits(saved["state"][0]["ema"])
    assert bits(optimizer.ema[1]) == bits(oracle.widen(now[1]))
