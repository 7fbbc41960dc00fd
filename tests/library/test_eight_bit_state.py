"""State dicts of 8-bit state: round trips, conversions between formats, and refusals."""

from __future__ import annotations

import copy

import eight_bit_reference as reference
import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu.conversion import decode, encode
from numba_adam.errors import StateDictError
from numba_adam.numerics.eight_bit import EightBit

SHAPES = [(30, 40), (129,), (), (0, 3)]
ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
FORMATS = ["float32", "float64", "bfloat16"]


def params_of(dtype: str = "f4") -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in SHAPES]


def trained(params: list[np.ndarray], **options) -> na.Adam:
    """Return an optimizer that has made three steps."""
    optimizer = na.Adam(params, **options)
    train(optimizer, params, 3, 0)
    return optimizer


def train(optimizer: na.Adam, params: list[np.ndarray], steps: int, seed: int) -> None:
    rng = np.random.default_rng([2, seed])
    for _ in range(steps):
        optimizer.step([np.asarray(rng.normal(size=param.shape), "f4") for param in params])


def bits(optimizer: na.Adam, params: list[np.ndarray]) -> list[object]:
    entries = [entry for state in optimizer.state.values() for entry in state.values()]
    return [entry.tobytes() if isinstance(entry, np.ndarray) else entry for entry in (*params, *entries)]


def eight_bit(state: dict, name: str) -> EightBit:
    return EightBit(state[name], state[f"{name}_scale"])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_dict_has_codes_and_scales(amsgrad):
    params = params_of()
    states = trained(params, state_dtype="8bit", amsgrad=amsgrad).state_dict()["state"]
    for param, state in zip(params, states.values(), strict=True):
        names = ARRAYS[: 3 if amsgrad else 2]
        assert list(state) == ["step", *(key for name in names for key in (name, f"{name}_scale"))]
        for name in names:
            assert (state[name].dtype, state[name].shape) == (np.uint8, param.shape)
            assert state[f"{name}_scale"].dtype == np.float32
            assert state[f"{name}_scale"].shape == (-(-param.size // 128),)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_round_trip_continues_with_the_same_bits(amsgrad):
    params = params_of()
    first = trained(params, state_dtype="8bit", amsgrad=amsgrad, seed=3)
    saved, kept = copy.deepcopy(first.state_dict()), [param.copy() for param in params]
    train(first, params, 3, 1)
    second = na.Adam(kept, state_dtype="8bit", seed=3)
    second.load_state_dict(saved)
    train(second, kept, 3, 1)
    assert bits(second, kept) == bits(first, params)


def test_loaded_arrays_are_copied():
    params = params_of()
    optimizer = trained(params, state_dtype="8bit")
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(optimizer, params, 2, 1)
    for index, state in before["state"].items():
        for name in ARRAYS[:2]:
            assert (saved["state"][index][name] == state[name]).all()
            assert (saved["state"][index][f"{name}_scale"] == state[f"{name}_scale"]).all()


def test_codes_may_have_any_memory_layout():
    params = params_of()
    optimizer = trained(params, state_dtype="8bit")
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for name in ARRAYS[:2]:
            room = np.zeros((*state[name].shape, 2), np.uint8)
            room[..., 0] = state[name]
            state[name] = room[..., 0]
    expected = bits(optimizer, [])
    optimizer.load_state_dict(saved)
    assert bits(optimizer, []) == expected


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_8_bit_state_loads_as_its_decoded_values(name, amsgrad):
    saved = trained(params_of(), state_dtype="8bit", amsgrad=amsgrad).state_dict()
    optimizer = na.Adam(params_of(), state_dtype=name)
    optimizer.load_state_dict(saved)
    for index, state in optimizer.state.items():
        given = saved["state"][index]
        pair = decode(eight_bit(given, "exp_avg"), eight_bit(given, "exp_avg_sq"))
        values = dict(zip(ARRAYS, pair, strict=False))
        if amsgrad:
            values["max_exp_avg_sq"] = decode(None, eight_bit(given, "max_exp_avg_sq"))[1]
        assert set(values) == set(state) - {"step"}
        for key, value in values.items():
            own = widened(state[key])
            assert state[key].shape == value.shape
            tolerance = 2.0**-8 if name == "bfloat16" else 0
            np.testing.assert_allclose(own, value, rtol=tolerance)


def widened(array: np.ndarray) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_load_as_the_nearest_codes(name, amsgrad):
    params = params_of("f8" if name == "float64" else "f4")
    saved = trained(params, state_dtype=name, amsgrad=amsgrad).state_dict()
    optimizer = na.Adam(params_of(), state_dtype="8bit")
    optimizer.load_state_dict(saved)
    for index, state in optimizer.state.items():
        given = {key: widened(saved["state"][index][key]).astype("f4") for key in ARRAYS if key in state}
        expected = [*reference.encode_both(given["exp_avg"].ravel(), given["exp_avg_sq"].ravel())]
        if amsgrad:
            expected.append(reference.encode_roots(np.sqrt(given["max_exp_avg_sq"].ravel())))
        for key, (codes, scales) in zip(ARRAYS, expected, strict=False):
            assert state[key].shape == params[index].shape
            assert state[key].tobytes() == codes.tobytes()
            assert state[f"{key}_scale"].tobytes() == scales.tobytes()


def test_float64_state_beyond_float32_becomes_infinite_without_a_warning():
    with np.errstate(all="raise"):
        own = encode(np.array([1e300]), np.array([1e300]))[1]
    assert own.scales.tolist() == [np.inf]


def test_converting_to_float32_and_back_keeps_the_codes():
    """Except the sign of a zero first moment with a zero second moment."""
    saved = trained(params_of(), state_dtype="8bit").state_dict()
    between, back = na.Adam(params_of()), na.Adam(params_of(), state_dtype="8bit")
    between.load_state_dict(saved)
    back.load_state_dict(between.state_dict())
    for index, state in back.state.items():
        for name in ARRAYS[:2]:
            assert (state[name] == saved["state"][index][name]).all()
            np.testing.assert_allclose(state[f"{name}_scale"], saved["state"][index][f"{name}_scale"], rtol=2.0**-21)


def test_float64_parameters_load_8_bit_state():
    saved = trained(params_of(), state_dtype="8bit").state_dict()
    params = params_of("f8")
    optimizer = na.Adam(params)
    optimizer.load_state_dict(saved)
    assert optimizer.state[0]["exp_avg"].dtype == np.float64
    train_in_float64 = [np.ones_like(param) for param in params]
    assert optimizer.step(train_in_float64).applied


def test_an_average_and_master_weights_load_with_8_bit_state():
    options = {"state_dtype": "8bit", "ema_decay": 0.9, "master_weights": True}
    params = params_of("f2")
    optimizer = trained(params, **options)
    saved, kept = copy.deepcopy(optimizer.state_dict()), [param.copy() for param in params]
    train(optimizer, params, 2, 1)
    other = na.Adam(kept, **options)
    other.load_state_dict(saved)
    train(other, kept, 2, 1)
    assert bits(other, kept) == bits(optimizer, params)


# --- refused ---


def without(*names):
    return lambda state, _: [state.pop(name) for name in names]


def changed(name, change):
    return lambda state, _: state.update({name: change(state[name])})


def as_floats(name):
    return lambda state, floats: state.update({name: floats[name]})


def given(**entries):
    return lambda state, _: state.update({key: state[name] for key, name in entries.items()})


BAD = {
    "first moment's scales missing": (without("exp_avg_scale"), "exp_avg_scale"),
    "second moment's scales missing": (without("exp_avg_sq_scale"), "exp_avg_sq_scale"),
    "scales too few": (changed("exp_avg_scale", lambda a: a[:-1]), r"\(9,\).*\(10,\)"),
    "scales too many": (changed("exp_avg_sq_scale", lambda a: np.append(a, a)), r"\(20,\).*\(10,\)"),
    "scales of another shape": (changed("exp_avg_scale", lambda a: a[:, None]), r"\(10, 1\)"),
    "scales in float64": (changed("exp_avg_scale", lambda a: a.astype("f8")), "float32 array 'exp_avg_scale'"),
    "scales a list": (changed("exp_avg_scale", lambda a: a.tolist()), "float32 array 'exp_avg_scale'"),
    "codes of another shape": (changed("exp_avg", lambda a: a.ravel()), r"\(1200,\).*\(30, 40\)"),
    "codes in int8": (changed("exp_avg", lambda a: a.view("i1")), "int8"),
    "codes in bytes": (changed("exp_avg_sq", lambda a: a.tobytes()), "exp_avg_sq"),
    "first moment in floats": (as_floats("exp_avg"), "exp_avg.*both"),
    "second moment in floats": (as_floats("exp_avg_sq"), "exp_avg.*both"),
    "largest without scales": (given(max_exp_avg_sq="exp_avg_sq"), "max_exp_avg_sq_scale"),
    "average in 8 bits": (given(ema="exp_avg", ema_scale="exp_avg_scale"), r"\['ema'\].*uint8"),
    "master in 8 bits": (given(master_param="exp_avg", master_param_scale="exp_avg_scale"), "master_param.*uint8"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("state_dtype", ["8bit", "float32"])
def test_a_bad_state_dict_is_refused_and_changes_nothing(state_dtype, name):
    spoil, message = BAD[name]
    saved = copy.deepcopy(trained(params_of(), state_dtype="8bit").state_dict())
    spoil(saved["state"][0], trained(params_of()).state_dict()["state"][0])
    params = params_of()
    optimizer = trained(params, state_dtype=state_dtype, ema_decay=0.9)
    before = bits(optimizer, params)
    with pytest.raises(StateDictError, match=rf"state\[0\](.|\n)*{message}"):
        optimizer.load_state_dict(saved)
    assert bits(optimizer, params) == before
