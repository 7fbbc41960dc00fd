"""Random options, formats, sizes and gradients, compared with the oracle; each case has its seed."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from formats_reference import DTYPES, Twin, bits, values_of

import numba_adam as na

NAMES = list(DTYPES)
SIZES = (0, 1, 2, 7, 128, 1_023, 1_025, 5_000, 40_000)


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def drawn_options(rng: np.random.Generator) -> dict[str, Any]:
    """Return options of an optimizer."""
    masters = bool(rng.integers(2))
    return {
        "state_dtype": (None, "float32", "float64", "bfloat16")[rng.integers(4)],
        "rounding": ("nearest", "stochastic")[rng.integers(2)],
        "seed": int(rng.integers(2**40)),
        "master_weights": masters,
        "ema_decay": (None, 0.0, 0.3, 0.999)[rng.integers(4)],
        "low_precision_copy": None if masters else (None, "bfloat16", "float16")[rng.integers(3)],
    }


def drawn_hyperparameters(rng: np.random.Generator) -> dict[str, Any]:
    """Return hyperparameters."""
    return {
        "lr": float(rng.choice([0, 1e-4, 1e-2, 1])),
        "betas": (float(rng.choice([0, 0.5, 0.9, 0.99])), float(rng.choice([0, 0.5, 0.9, 0.999]))),
        "eps": float(rng.choice([0, 1e-8, 1e-2])),
        "weight_decay": float(rng.choice([0, 0.01, 0.9])),
        "decoupled_weight_decay": bool(rng.integers(2)),
        "eps_mode": ("hat", "algorithm1")[rng.integers(2)],
        "maximize": bool(rng.integers(2)),
        "amsgrad": bool(rng.integers(2)),
    }


def drawn_array(rng: np.random.Generator, size: int, name: str) -> np.ndarray:
    """Return an array of a format that begins anywhere."""
    room, skip = np.zeros(size + 9, DTYPES[name]), int(rng.integers(9))
    array = room[skip : skip + size]
    array[:] = values_of(size, DTYPES[name], int(rng.integers(2**32)), spread=float(rng.choice([3, 20, 130])))
    return array


def drawn_case(seed: int) -> tuple[np.random.Generator, list[np.ndarray], dict[str, Any], dict[str, Any]]:
    """Return random parameters and options that fit, and their generator."""
    rng = np.random.default_rng(seed)
    while True:
        options, hyperparameters = drawn_options(rng), drawn_hyperparameters(rng)
        params = [drawn_array(rng, rng.choice(SIZES), NAMES[rng.integers(5)]) for _ in range(rng.integers(1, 6))]
        try:
            na.Adam(params, **options)
        except na.errors.DtypeError:
            continue
        return rng, params, options, hyperparameters


def twins_of(params: list[np.ndarray], options: dict[str, Any], hyperparameters: dict[str, Any]) -> list[Twin]:
    own = {key: value for key, value in options.items() if key != "state_dtype"}
    state = options["state_dtype"]
    return [Twin(p, state, dict(hyperparameters), place=place, **own) for place, p in enumerate(params)]


def check_same(optimizer: na.Adam, place: int, param: np.ndarray, twin: Twin) -> None:
    """Compare the whole state of a parameter."""
    found, expected = {"param": param}, {"param": twin.param}
    if twin.steps:
        state = optimizer.state[place]
        found |= {
            key: state[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master_param") if key in state
        }
        found |= {"ema": optimizer.ema[place]} if twin.ema is not None else {}
        found |= {"copy": optimizer.low_precision[place]} if twin.copy is not None else {}
        expected |= {key: twin.master if key == "master_param" else getattr(twin, key) for key in found}
        assert state["step"] == twin.steps
    for key, array in found.items():
        assert bits(array) == bits(expected[key]), key


@pytest.mark.parametrize("seed", range(40))
def test_a_random_mixture_equals_the_oracle(seed):
    rng, params, options, hyperparameters = drawn_case(seed)
    numba.set_num_threads(min(int(rng.integers(1, 3)), numba.config.NUMBA_NUM_THREADS))
    optimizer, twins = na.Adam(params, **options, **hyperparameters), twins_of(params, options, hyperparameters)
    for _ in range(3):
        grads = [None if rng.random() < 0.15 else drawn_array(rng, p.size, NAMES[rng.integers(5)]) for p in params]
        scale, clip = float(rng.choice([1, 0.7])), (None, 0.5)[rng.integers(2)]
        for twin, grad in zip(twins, grads, strict=True):
            if grad is not None:
                twin.step(grad, scale, clip or 0.0)
        step = {"grad_scale": scale, "clip_value": clip, "loss_scale": (None, 1.0)[rng.integers(2)]}
        zero_grad = bool(rng.integers(2))
        assert optimizer.step(grads, zero_grad=zero_grad, **step).applied
        assert not zero_grad or not any(grad.view(np.uint8).any() for grad in grads if grad is not None)
    for place, (param, twin) in enumerate(zip(params, twins, strict=True)):
        check_same(optimizer, place, param, twin)
