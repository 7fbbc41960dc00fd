"""State dicts after later steps: the state belongs to the optimizer, and the param groups are a copy."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import StateDictError
from numba_adam.interop import from_flat_arrays, to_flat_arrays
from numba_adam.numerics.formats import BFLOAT16, dtype_of

KINDS = {
    "float32": ("float32", {}),
    "float64": ("float64", {"amsgrad": True}),
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16", "amsgrad": True}),
    "8 bits": ("float32", {"state_dtype": "8bit", "amsgrad": True}),
    "masters": ("float16", {"master_weights": True, "ema_decay": 0.5}),
    "average and copy": ("float32", {"ema_decay": 0.5, "low_precision_copy": "float16"}),
}


def made(kind, size=200):
    name, options = KINDS[kind]
    dtype = dtype_of(BFLOAT16) if name == "bfloat16" else np.dtype(name)
    params = [np.full(size, 0x3F80, np.uint16).view(dtype) if name == "bfloat16" else np.ones(size, dtype), None]
    params[1] = params[0][:3].copy()
    return na.Adam(params, lr=0.1, **options), params


def steps(optimizer, params, count=1, value=0.5):
    for k in range(count):
        optimizer.step([np.linspace(-value, value * (k + 1), param.size, dtype=np.float32) for param in params])


def bits(state_dict):
    return {(k, name): np.asarray(v).tobytes() for k, entry in state_dict["state"].items() for name, v in entry.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_a_state_dict_changes_with_later_steps(kind):
    optimizer, params = made(kind)
    steps(optimizer, params, 2)
    taken, shown = optimizer.state_dict(), optimizer.state
    kept = copy.deepcopy(taken)
    steps(optimizer, params, 3, value=2.0)
    assert bits(taken) == bits(optimizer.state_dict()) == bits({"state": shown})
    assert [entry["step"] for entry in taken["state"].values()] == [5, 5]
    assert [entry["step"] for entry in kept["state"].values()] == [2, 2]
    before = {name for (index, name), value in bits(kept).items() if index == 0 and value == bits(taken)[0, name]}
    assert before == set()


def test_the_param_groups_of_a_state_dict_are_a_copy():
    optimizer = na.Adam([np.ones(3)], lr=0.5)
    taken = optimizer.state_dict()
    optimizer.param_groups[0]["lr"] = 7.0
    assert taken["param_groups"][0]["lr"] == 0.5


def test_the_step_entry_behaves_like_a_number():
    optimizer = na.Adam([np.ones(3)])
    for _ in range(3):
        optimizer.step([np.ones(3)])
    step = optimizer.state[0]["step"]
    assert (int(step), step + 1, step == 3, f"{step:03d}", len(range(step))) == (3, 4, True, "003", 3)
    assert json.dumps(int(step)) == "3"
    na.adam_update(np.ones(3), np.ones(3), np.zeros(3), np.zeros(3), step)
    with pytest.raises(ValueError, match="read-only"):
        step[...] = 0
    assert copy.deepcopy(step).flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_does_not_change_earlier_state_dicts_as_in_pytorch(kind):
    """Except `ema`: its arrays stay the same, because a model may use them."""
    optimizer, params = made(kind)
    steps(optimizer, params, 2)
    other, others = made(kind)
    steps(other, others, 5)
    taken = optimizer.state_dict()
    before = bits(taken)
    optimizer.load_state_dict(other.state_dict())
    steps(optimizer, params)
    after = bits(taken)
    assert {key for key in before if after[key] != before[key]} == {key for key in before if key[1] == "ema"}
    assert bits(optimizer.state_dict()) != before
    again = copy.deepcopy(optimizer.state_dict())
    if any(key[1] == "ema" for key in before):
        with pytest.raises(StateDictError, match=r"params\[0\].*'ema'.*deepcopy"):
            optimizer.load_state_dict(taken)
        assert bits(optimizer.state_dict()) == bits(again)
    else:
        optimizer.load_state_dict(taken)
        assert bits(optimizer.state_dict()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizers_own_state_dict_loads_even_with_exchanged_states(kind):
    optimizer, _ = made(kind, size=3)
    optimizer.step([np.ones(3, np.float32), None])
    optimizer.step([np.ones(3, np.float32), np.full(3, 2.0, np.float32)])
    taken = optimizer.state_dict()
    before = bits(taken)
    optimizer.load_state_dict(taken)
    assert bits(optimizer.state_dict()) == before
    if "ema_decay" not in KINDS[kind][1]:
        taken = optimizer.state_dict()
        taken["state"] = {0: taken["state"][1], 1: taken["state"][0]}
        optimizer.load_state_dict(taken)
        assert bits(optimizer.state_dict()) == {(1 - index, name): value for (index, name), value in before.items()}


def test_a_load_without_state_for_a_parameter_does_not_change_earlier_dicts():
    optimizer = na.Adam([np.ones(3)])
    fresh = copy.deepcopy(optimizer.state_dict())
    optimizer.step([np.ones(3)])
    taken = optimizer.state_dict()
    optimizer.load_state_dict(fresh)
    optimizer.step([np.ones(3)])
    optimizer.step([np.ones(3)])
    assert (taken["state"][0]["step"], optimizer.state[0]["step"]) == (1, 2)


# --- carried by numpy.savez ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_through_savez_without_pickle(kind):
    optimizer, params = made(kind)
    optimizer.param_groups[0].update(name="body", initial_lr=0.1, betas=(0.5, 0.75))
    steps(optimizer, params, 3)
    file = io.BytesIO()
    np.savez(file, **to_flat_arrays(optimizer.state_dict()))
    file.seek(0)
    other, others = made(kind)
    for own, param in zip(others, params, strict=True):
        own[...] = param
    with np.load(file, allow_pickle=False) as arrays:
        other.load_state_dict(from_flat_arrays(arrays))
    assert bits(other.state_dict()) == bits(optimizer.state_dict())
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for each, own in ((optimizer, params), (other, others)):
        steps(each, own, 2)
    assert [param.tobytes() for param in others] == [param.tobytes() for param in params]


def test_invalid_flat_arrays_and_groups_are_refused():
    optimizer = na.Adam([np.ones(3)])
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(StateDictError, match="JSON"):
        to_flat_arrays(optimizer.state_dict())
    groups = np.array("[]")
    for arrays, words in (
        ({}, "param_groups"),
        ([1], "param_groups"),
        ({"param_groups": np.array("{")}, "JSON"),
        ({"param_groups": groups, "exp_avg": np.ones(3)}, "'exp_avg'"),
        ({"param_groups": groups, "state.x.exp_avg": np.ones(3)}, r"'state\.x\.exp_avg'"),
    ):
        with pytest.raises(StateDictError, match=words):
            from_flat_arrays(arrays)
    with pytest.raises(StateDictError, match="groups of"):
        optimizer.load_state_dict(from_flat_arrays({"param_groups": groups}))


def test_an_8_bit_state_with_an_average_loads_back():
    """It was refused as if another load had replaced it."""
    w = np.ones(300, np.float32)
    optimizer = na.Adam(w, state_dtype="8bit", ema_decay=0.5)
    optimizer.step(np.full(300, 0.5, np.float32))
    codes = optimizer.state[0]["exp_avg"].tobytes()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[0]["exp_avg"].tobytes() == codes
