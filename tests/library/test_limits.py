"""Values that the compute dtype cannot represent are refused when they are set; float64 keeps its range."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError

BETAS = {"no memory of squares": (0.999, 0.0)}  # bias correction makes a thousand times the learning rate of it
NOT_FOR_FLOAT32 = {  # what to set, and what the message names first
    "lr": {"lr": 1e300},
    "lr just beyond": {"lr": 3.5e38},
    "step size": {"lr": 1e36, "betas": BETAS["no memory of squares"]},
    "eps": {"eps": 1e39},
    "eps that becomes 0": {"eps": 1e-46},
    "eps of few digits": {"eps": 1e-40},
    "weight decay": {"weight_decay": 1e39},
    "decoupled weight decay": {"weight_decay": 1e39, "decoupled_weight_decay": True},
    "lr times weight decay": {"weight_decay": 1e20, "lr": 1e20, "decoupled_weight_decay": True},
    "beta1 that becomes 1": {"betas": (1 - 1e-8, 0.999)},
    "beta2 that becomes 1": {"betas": (0.9, 1 - 2.0**-25)},
}
NAMED = {"step size": "lr", "lr times weight decay": "lr", "beta1 that becomes 1": "betas[0]"}
NAMED |= {"beta2 that becomes 1": "betas[1]", "decoupled weight decay": "weight_decay"}
FOR_FLOAT32 = {
    "lr": {"lr": 3.4e38},
    "a tiny lr": {"lr": 1e-300},
    "step size": {"lr": 3e35, "betas": BETAS["no memory of squares"]},
    "eps": {"eps": 0.0},
    "the smallest eps": {"eps": 2.0**-126},
    "beta2": {"betas": (0.9, float(np.nextafter(1 - 2.0**-25, 0)))},
    "L2 beside a large lr": {"weight_decay": 1e20, "lr": 1e20},
}
NOT_FOR_FLOAT64 = {
    "eps": {"eps": 5e-324},
    "step size": {"lr": 1e306, "betas": BETAS["no memory of squares"]},
    "lr times weight decay": {"weight_decay": 1e200, "lr": 1e200, "decoupled_weight_decay": True},
}


def named(name, values):
    return re.escape(NAMED.get(name, next(iter(values))) + "=")


def rows_of(dtype, **values):
    table, exp_avg, exp_avg_sq = np.ones((2, 3), dtype), np.zeros((2, 3), dtype), np.zeros((2, 3), dtype)
    na.adam_update_rows(table, np.array([0]), np.ones((1, 3), dtype), exp_avg, exp_avg_sq, 1, **values)


def updated(dtype, **values):
    param, exp_avg, exp_avg_sq = np.ones(3, dtype), np.zeros(3, dtype), np.zeros(3, dtype)
    na.adam_update(param, np.ones(3, dtype), exp_avg, exp_avg_sq, 1, **values)


def grouped(dtype, **values):
    na.Adam([{"params": [np.ones(3)]}, {"params": [np.ones(3, dtype)], **values}])


def set_later(dtype, **values):
    optimizer = na.Adam([np.ones(3, dtype)])
    before = dict(optimizer.param_groups[0])
    try:
        optimizer.param_groups[0].update(values)
    except HyperparameterError:
        assert dict(optimizer.param_groups[0]) == before
        raise


def loaded(dtype, **values):
    optimizer = na.Adam([np.ones(3, dtype)])
    state = optimizer.state_dict()
    state["param_groups"][0].update(values)
    try:
        optimizer.load_state_dict(state)
    except HyperparameterError:
        assert optimizer.param_groups[0]["eps_mode"] == "hat"
        raise


WAYS = {
    "constructor": lambda dtype, **values: na.Adam([np.ones(3, dtype)], **values),
    "group": grouped,
    "set later": set_later,
    "loaded": loaded,
    "adam_update": updated,
    "adam_update_rows": rows_of,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NOT_FOR_FLOAT32)
def test_values_beyond_float32_are_refused_by_name(way, name):
    values = NOT_FOR_FLOAT32[name]
    with pytest.raises(HyperparameterError, match=named(name, values) + ".*float32"):
        WAYS[way](np.float32, **values)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FOR_FLOAT32)
def test_values_within_float32_are_accepted(way, name):
    WAYS[way](np.float32, **FOR_FLOAT32[name])
    assert FOR_FLOAT32[name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NOT_FOR_FLOAT32)
def test_float64_keeps_its_range(way, name):
    WAYS[way](np.float64, **NOT_FOR_FLOAT32[name])
    assert NOT_FOR_FLOAT32[name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NOT_FOR_FLOAT64)
def test_values_beyond_float64_are_refused_by_name(way, name):
    values = NOT_FOR_FLOAT64[name]
    with pytest.raises(HyperparameterError, match=named(name, values) + ".*float64"):
        WAYS[way](np.float64, **values)


@pytest.mark.parametrize("name", NOT_FOR_FLOAT32)
def test_a_refused_update_changes_nothing(name):
    arrays = [np.full(3, value, np.float32) for value in (1.0, 0.5, 0.25, 0.125)]
    before = [array.copy() for array in arrays]
    with pytest.raises(HyperparameterError):
        na.adam_update(*arrays, 3, **NOT_FOR_FLOAT32[name])
    assert [array.tolist() for array in arrays] == [array.tolist() for array in before]


@pytest.mark.parametrize(
    "options",
    [{"master_weights": True}, {"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}, {}],
    ids=str,
)
def test_16_bit_parameters_are_computed_in_float32(options):
    with pytest.raises(HyperparameterError, match="eps=1e-46"):
        na.Adam([np.ones(3, ml_dtypes.bfloat16)], eps=1e-46, **options)


def test_a_float32_parameter_with_float64_state_is_computed_in_float64():
    param = np.zeros(1, np.float32)
    optimizer = na.Adam([param], eps=1e-46, lr=1.0, state_dtype="float64")
    optimizer.step([np.full(1, 1e-30, np.float32)])
    assert param[0] == pytest.approx(-1.0)


def test_a_schedule_that_goes_beyond_float32_is_refused_and_nothing_changes():
    param, grad = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer = na.Adam([param], lr=lambda step: 1e-3 if step < 3 else 1e39)
    for _ in range(2):
        optimizer.step([grad])
    before = param.tobytes(), optimizer.state[0]["exp_avg"].tobytes(), optimizer.state[0]["step"]
    with pytest.raises(HyperparameterError, match=r"schedule returned, for update 3, lr=1e\+39.*float32"):
        optimizer.step([grad])
    assert (param.tobytes(), optimizer.state[0]["exp_avg"].tobytes(), optimizer.state[0]["step"]) == before


def test_a_schedule_that_starts_beyond_float32_is_refused_at_once():
    with pytest.raises(HyperparameterError, match="float32"):
        na.Adam([np.ones(3, np.float32)], lr=lambda step: 1e39 / step)


def test_a_refused_schedule_changes_no_group():
    groups = [
        {"params": [np.ones(3, np.float32)], "lr": lambda step: 0.1 * step},
        {"params": [np.ones(3, np.float32)], "lr": lambda step: 1e38 * step**2},
    ]
    optimizer = na.Adam(groups)
    grads = [np.ones(3, np.float32)] * 2
    optimizer.step(grads)
    with pytest.raises(HyperparameterError, match="update 2"):
        optimizer.step(grads)
    assert [group.hyperparameters.lr for group in optimizer.param_groups] == [0.1, 1e38]


def test_a_learning_rate_that_decays_below_float32_is_accepted():
    param = np.ones(3, np.float32)
    optimizer = na.Adam([param], lr=lambda step: 1e-3 * 1e-20**step)
    for _ in range(20):
        assert optimizer.step([np.ones(3, np.float32)]).applied
    assert (param == 1).all()


def test_the_largest_learning_rates_of_a_dtype_make_finite_steps(dtype):
    for betas in ((0.9, 0.999), (0.999, 0.0), (0.0, 0.0), (0.5, 0.999999)):
        grown = max(1.0, np.sqrt(1 - betas[1]) / (1 - betas[0]))
        lr = float(np.finfo(dtype).max) / grown * (1 - 1e-9)
        for step in (1, 2, 10, 10**6):
            param, exp_avg, exp_avg_sq = np.zeros((3, 4), dtype)
            na.adam_update(param, np.zeros(4, dtype), exp_avg, exp_avg_sq, step, lr=lr, betas=betas)
            assert (param == 0).all()


def test_a_history_with_values_beyond_the_dtype_is_refused():
    history = na.RowHistory([(1, na.Hyperparameters(lr=1e39)), (2, na.Hyperparameters())])
    for dtype, is_refused in ((np.float64, False), (np.float32, True)):
        table, exp_avg, exp_avg_sq = np.ones((3, 2, 3), dtype)
        last_step = np.zeros(2, np.int64)
        call = (table, np.array([1]), np.ones((1, 3), dtype), exp_avg * 0, exp_avg_sq * 0, 3)
        if not is_refused:
            na.adam_update_rows(*call, mode="exact", last_step=last_step, history=history)
            continue
        with pytest.raises(HyperparameterError, match=r"from step 1 on, lr=1e\+39"):
            na.adam_update_rows(*call, mode="exact", last_step=last_step, history=history)
        assert (table == 1).all()
        assert not last_step.any()


@pytest.mark.parametrize("scale", [1e39, -1e39, 1e-46, 1e-40])
def test_scales_beyond_float32_are_refused_in_functions_too(scale):
    for way in (updated, rows_of):
        with pytest.raises(HyperparameterError, match=re.escape(f"grad_scale={scale!r}")):
            way(np.float32, grad_scale=scale)
        way(np.float64, grad_scale=scale)
    with pytest.raises(HyperparameterError, match=re.escape(f"grad_scale={scale!r}")):
        na.Adam([np.ones(3, np.float32), np.ones(3)]).step([np.ones(3, np.float32), np.ones(3)], grad_scale=scale)


def test_float64_keeps_its_range_of_scales():
    param = np.zeros(3)
    optimizer = na.Adam([param], lr=1.0, eps=0.0)
    optimizer.step([np.full(3, 1e-250)], grad_scale=1e200)
    optimizer.step([np.full(3, 1e100)], loss_scale=1e150, clip_value=1e-60)
    assert optimizer.state[0]["exp_avg"] == pytest.approx(0.09 * 1e-50)
    assert np.isfinite(param).all()


def test_an_ema_decay_that_float32_rounds_to_1_is_refused():
    with pytest.raises(HyperparameterError, match=re.escape("ema_decay=0.99999999")):
        na.Adam([np.ones(3, np.float32)], ema_decay=0.99999999)
    assert na.Adam([np.ones(3)], ema_decay=0.99999999).ema[0].tolist() == [1, 1, 1]
