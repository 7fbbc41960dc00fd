"""One-element arrays are accepted as numbers, and other arrays are refused by name."""

from __future__ import annotations

import copy
import decimal
import fractions

import ml_dtypes
import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError
from numba_adam.settings.options import Options


class Convertible:
    """Stands for tensors with Python's conversions but without `item()`."""

    def __init__(self, value, dtype="<dtype: 'float32'>"):
        self._value, self.dtype, self.shape = value, dtype, ()

    def __float__(self):
        return float(self._value)

    def __index__(self):
        if isinstance(self._value, float):
            raise TypeError("only integer tensors can be an index")
        return int(self._value)


SCALARS = {
    "0-d": np.array,
    "one element": lambda value: np.array([value]),
    "1 x 1": lambda value: np.array([[value]]),
    "float32": np.float32,
    "float32 array": lambda value: np.array([value], np.float32),
    "float16 array": lambda value: np.array(value, np.float16),
    "bfloat16": ml_dtypes.bfloat16,
    "bfloat16 array": lambda value: np.array([value], ml_dtypes.bfloat16),
    "not masked": np.ma.array,
    "convertible": Convertible,
    "fraction": fractions.Fraction,
    "decimal": decimal.Decimal,
}


def every_number(wrap):
    """Return all bits of three optimizers and three functions with all numbers in one form."""
    settings = {"lr": wrap(0.25), "betas": (wrap(0.5), wrap(0.75)), "eps": wrap(0.125), "weight_decay": wrap(0.5)}
    treatment = {"grad_scale": wrap(0.5), "loss_scale": wrap(2.0), "max_grad_norm": wrap(0.5), "clip_value": wrap(0.25)}
    grad = np.array([1.0, -2.0, 0.5])
    seen = []
    for params, options in (
        (np.ones(3), {**settings, "ema_decay": wrap(0.5)}),
        ([{"params": np.ones(3), **settings}], {}),
        (np.ones(3), {**settings, "lr": lambda step: wrap(0.25 * step)}),
    ):
        optimizer = na.Adam(params, **options)
        for _ in range(2):
            optimizer.step(grad if isinstance(params, np.ndarray) else [grad], **treatment)
        group = optimizer.param_groups[0]
        assert [type(group[name]) for name in ("eps", "weight_decay")] == [float, float]
        optimizer.param_groups[0].update(lr=wrap(0.5), betas=[wrap(0.25), wrap(0.5)])
        optimizer.step(grad if isinstance(params, np.ndarray) else [grad])
        seen += [group["params"][0], optimizer.state[0]["exp_avg_sq"]]
        seen += [optimizer.ema] if "ema_decay" in options else []
    param, exp_avg, exp_avg_sq = np.ones((3, 1)), np.zeros((3, 1)), np.zeros((3, 1))
    na.adam_update(param, grad.reshape(3, 1), exp_avg, exp_avg_sq, 1, grad_scale=wrap(0.5), **settings)
    rows, last_step, common = np.array([0]), np.ones(3, np.int64), {"last_step": np.ones(3, np.int64), **settings}
    state = (exp_avg, exp_avg_sq)
    na.adam_update_rows(param, rows, grad[:1].reshape(1, 1), *state, 2, mode="exact", grad_scale=wrap(0.5), **common)
    na.adam_catch_up_rows(param, None, *state, 3, **common)
    return [array.tobytes() for array in (*seen, param, *state, last_step)]


@pytest.mark.parametrize("form", SCALARS)
def test_an_array_of_one_element_counts_as_its_number(form):
    assert every_number(SCALARS[form]) == every_number(float)


@pytest.mark.parametrize("wrap", [np.array, lambda n: np.array([n]), np.uint8, Convertible], ids=range(4))
def test_a_whole_number_may_be_an_array_of_one_element(wrap):
    results = []
    for number in (3, wrap(3)):
        param, exp_avg, exp_avg_sq = np.ones((2, 1)), np.zeros((2, 1)), np.zeros((2, 1))
        na.adam_update(param, np.ones((2, 1)), exp_avg, exp_avg_sq, number)
        na.adam_update_rows(param, np.array([0]), np.ones((1, 1)), exp_avg, exp_avg_sq, number)
        assert Options(seed=number).seed == 3
        results.append(param.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_betas_may_be_one_array(dtype):
    optimizer = na.Adam([np.ones(3)], betas=np.array([0.5, 0.75], dtype))
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    optimizer.param_groups[0]["betas"] = np.array([0.25, 0.5], dtype)
    assert optimizer.param_groups[0]["betas"] == (0.25, 0.5)
    for wrong in ([0.5, 1.0], [0.5], [0.5, np.nan], [[0.5, 0.5]], [0.5, 0.5, 0.5]):
        with pytest.raises(HyperparameterError, match="betas"):
            optimizer.param_groups[0]["betas"] = np.array(wrong, dtype)
    assert optimizer.param_groups[0]["betas"] == (0.25, 0.5)


def test_numbers_in_a_state_dict_may_be_arrays():
    optimizer = na.Adam([np.ones(3)])
    optimizer.step([np.ones(3)])
    given = copy.deepcopy(optimizer.state_dict())
    given["state"][0]["step"] = np.array([7.0], np.float32)
    given["param_groups"][0].update(
        lr=np.array([0.25]), betas=[np.array(0.5), np.float32(0.75)], eps=np.array(0.125), amsgrad=np.array([True])
    )
    optimizer.load_state_dict(given)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["amsgrad"]) == (0.25, (0.5, 0.75), 0.125, True)
    assert optimizer.state[0]["step"] == 7


NONE = {
    "two elements": np.array([0.1, 0.2]),
    "no element": np.array([]),
    "complex": np.array(0.1j),
    "complex scalar": np.complex64(0.1),
    "truth value": np.array(True),
    "truth value of another kind": Convertible(1.0, "<dtype: 'bool'>"),
    "string": np.array("0.1"),
    "string scalar": np.str_("0.1"),
    "time": np.timedelta64(0),
    "time in an array": np.array([0], "m8[s]"),
    "masked": np.ma.array([0.1], mask=[True]),
    "the masked constant": np.ma.masked,
    "nothing": np.array(None),
    "NaN": np.array(np.nan),
    "NaN of one element": np.array([np.nan], np.float32),
    "bytes": b"0.1",
    "list": [np.array(0.1)],
    "decimal NaN": decimal.Decimal("nan"),
}


@pytest.mark.parametrize("form", NONE)
def test_arrays_without_a_single_number_are_refused_by_name(form):
    value, w = NONE[form], np.ones((3, 1))
    state = (np.zeros((3, 1)), np.zeros((3, 1)))
    optimizer = na.Adam([w])
    rows = (w, np.array([0]), np.ones((1, 1)), *state)
    step = ("grad_scale", "loss_scale", "max_grad_norm", "clip_value")
    calls = [
        *((name, lambda name=name: na.Adam([w], **{name: value})) for name in ("lr", "eps", "weight_decay")),
        *((name, lambda name=name: na.Adam([w], **{name: value})) for name in ("ema_decay", "seed")),
        ("betas", lambda: na.Adam([w], betas=(0.5, value))),
        ("lr", lambda: na.Adam([{"params": w, "lr": value}])),
        ("lr", lambda: na.Adam([w], lr=lambda _: value)),
        ("lr", lambda: optimizer.param_groups[0].update(lr=value)),
        *((name, lambda name=name: optimizer.step([w.copy()], **{name: value})) for name in step),
        ("grad_scale", lambda: na.adam_update(w, w.copy(), *state, 1, grad_scale=value)),
        ("eps", lambda: na.adam_update(w, w.copy(), *state, 1, eps=value)),
        ("step", lambda: na.adam_update(w, w.copy(), *state, value)),
        ("eps", lambda: na.adam_update_rows(*rows, 1, eps=value)),
        ("step", lambda: na.adam_update_rows(*rows, value)),
    ]
    for name, call in calls:
        with pytest.raises(HyperparameterError, match=name):
            call()
    assert (w == 1).all()
    assert optimizer.state == {}


def test_the_message_says_how_many_elements_there_are():
    with pytest.raises(HyperparameterError, match=r"lr=array.*real number, not ndarray of shape \(2,\)"):
        na.Adam([np.ones(3)], lr=np.ones(2))


def test_float16_moments_are_refused_with_a_reason():
    with pytest.raises(HyperparameterError, match=r"state_dtype='float16'.*square of a gradient.*bfloat16.*8bit"):
        na.Adam([np.ones(3, np.float32)], state_dtype="float16")
    half = np.zeros(3, np.float16)
    with pytest.raises(na.errors.DtypeError, match=r"square of a gradient.*bfloat16"):
        na.adam_update(np.ones(3, np.float32), np.ones(3, np.float32), half, half.copy(), 1)
    assert np.float32(np.float16(1e-4)) ** 2 > 0  # the float16 itself is there; its square in float16 is not
    assert np.float16(1e-4) * np.float16(1e-4) == 0
